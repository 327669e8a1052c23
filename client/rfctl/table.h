/* A table of text, its columns as wide as what stands in them. */
#pragma once

#include <stddef.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 12

enum table_flags {
    TABLE_RIGHT = 1, /* numbers: aligned to the right */
    TABLE_CUT = 2,   /* one of a table's columns: it gets narrower where a line is too wide */
    TABLE_DROP = 4,  /* another: it is left out where a line is too wide, before that */
};

struct table_column {
    const char *title;
    unsigned flags;
};

struct table;

/* `columns` end with one without a title, and outlive the table. Free it with table_free(). */
struct table *table_new(const struct table_column *columns);
void table_free(struct table *table);

/* Adds the next cell, row by row; it is escaped and copied. NULL stands for an empty one. */
void table_add(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Writes the titles and the rows. A column in which every cell is empty is left out. `width`: what a line may take; 0:
 * anything. */
void table_print(const struct table *table, FILE *stream, size_t width);
