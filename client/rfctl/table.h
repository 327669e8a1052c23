/* Prints a table of text. Each column is as wide as its widest cell.
 *
 * This is not libsmartcols (2.38), which cuts without an ellipsis, keeps columns that are empty or for which a terminal
 * is too narrow, pads the last column, and prints U+202E, which turns the direction of the text that follows. It offers
 * columns by choice; here scripts take what they need from --json. */
#pragma once

#include <stddef.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 12

enum table_flags {
    TABLE_RIGHT = 1, /* numbers: aligned to the right */
    TABLE_CUT = 2,   /* at most one column: its cells are cut if the lines are too wide */
    TABLE_DROP = 4,  /* is left out if the lines are too wide, before any cell is cut */
};

struct table_column {
    const char *title;
    unsigned flags;
};

struct table;

/* `columns` end with one whose title is NULL, and must be valid as long as the table. The caller calls table_free(). */
struct table *table_new(const struct table_column *columns);
void table_free(struct table *table);

/* Adds the next cell. Cells are added row by row. The text is escaped and copied. NULL: an empty cell. */
void table_add(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints the titles and the rows. A column with only empty cells is left out. `width` is the most columns of the
 * terminal that a line may take; 0: no limit, and nothing is cut. */
void table_print(const struct table *table, FILE *stream, size_t width);
