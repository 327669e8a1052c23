#include "client/rfctl/table.h"

#include "client/rfctl/format.h"
#include "client/rfctl/memory.h"
#include "proto/min.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define GAP     2 /* spaces between two columns */
#define CUT_MIN 8 /* a column with TABLE_CUT does not get narrower than this */

struct table {
    const struct table_column *columns;
    size_t n_columns;
    char **cells; /* row by row */
    size_t n_cells;
    size_t capacity;
};

struct table *table_new(const struct table_column *columns)
{
    struct table *table = need_memory(sizeof(*table));
    table->columns = columns;
    while (columns[table->n_columns].title)
        table->n_columns++;
    return table;
}

void table_free(struct table *table)
{
    if (!table)
        return;
    for (size_t i = 0; i < table->n_cells; i++)
        free(table->cells[i]);
    free(table->cells);
    free(table);
}

void table_add(struct table *table, const char *format, ...)
{
    need_room(&table->cells, &table->capacity, table->n_cells, sizeof(*table->cells), 64);
    char *text = NULL;
    if (format) {
        va_list arguments;
        va_start(arguments, format);
        if (vasprintf(&text, format, arguments) < 0)
            text = NULL;
        va_end(arguments);
    }
    table->cells[table->n_cells++] = text_escape(text ? text : "", text ? strlen(text) : 0);
    free(text);
}

/* Computes the width of each column; 0: the column is left out. */
static void measure(const struct table *table, size_t width, size_t *widths)
{
    assert(table->n_columns > 0);
    for (size_t i = 0; i < table->n_columns; i++)
        widths[i] = 0;
    for (size_t i = 0; i < table->n_cells; i++) {
        size_t cell = text_width(table->cells[i]);
        if (cell > widths[i % table->n_columns])
            widths[i % table->n_columns] = cell;
    }
    size_t sum = 0;
    for (size_t i = 0; i < table->n_columns; i++) {
        size_t title = strlen(table->columns[i].title);
        if (widths[i] > 0 && widths[i] < title)
            widths[i] = title;
        if (widths[i] > 0)
            sum += widths[i] + (sum > 0 ? GAP : 0);
    }
    for (size_t i = 0; i < table->n_columns && width > 0 && sum > width; i++) {
        if (!(table->columns[i].flags & TABLE_DROP) || widths[i] == 0)
            continue;
        sum -= widths[i] + GAP;
        widths[i] = 0;
    }
    for (size_t i = 0; i < table->n_columns && width > 0 && sum > width; i++) {
        if (!(table->columns[i].flags & TABLE_CUT) || widths[i] <= CUT_MIN)
            continue;
        size_t spare = widths[i] - CUT_MIN, too_much = sum - width;
        widths[i] -= min_u64(too_much, spare);
        break;
    }
}

static void pad(FILE *stream, size_t n)
{
    fprintf(stream, "%*s", (int)n, "");
}

/* Prints `cells` as a line, without spaces after the last one that is not empty. */
static void print_row(const struct table *table, FILE *stream, const size_t *widths, const char *const *cells)
{
    size_t owed = 0; /* spaces to write before the next cell */
    for (size_t i = 0; i < table->n_columns; i++) {
        if (widths[i] == 0)
            continue;
        size_t taken = text_width(cells[i]);
        size_t left = taken < widths[i] ? widths[i] - taken : 0;
        int right = table->columns[i].flags & TABLE_RIGHT;
        if (taken > 0) {
            pad(stream, owed + (right ? left : 0));
            fputs(cells[i], stream);
            owed = right ? GAP : left + GAP;
        } else
            owed += widths[i] + GAP;
    }
    putc('\n', stream);
}

void table_print(const struct table *table, FILE *stream, size_t width)
{
    size_t widths[TABLE_COLUMNS_MAX];
    const char *cells[TABLE_COLUMNS_MAX];
    measure(table, width, widths);
    for (size_t i = 0; i < table->n_columns; i++)
        cells[i] = table->columns[i].title;
    print_row(table, stream, widths, cells);
    for (size_t row = 0; row + table->n_columns <= table->n_cells; row += table->n_columns) {
        char *cut = NULL;
        for (size_t i = 0; i < table->n_columns; i++) {
            cells[i] = table->cells[row + i];
            if (table->columns[i].flags & TABLE_CUT && text_width(cells[i]) > widths[i]) {
                cut = text_escape(cells[i], strlen(cells[i]));
                text_cut(cut, widths[i]);
                cells[i] = cut;
            }
        }
        print_row(table, stream, widths, cells);
        free(cut);
    }
}
