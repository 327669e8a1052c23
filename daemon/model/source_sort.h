/* The order of a source's files: the first one's path is shown as the model's, and its metadata is the model's. */
#pragma once

#include "daemon/model/source.h"

/* Puts the files of a new source, which nobody else has yet, into the order of the numbers in their names
 * ("...-00002-of-00003..."). If these are not the numbers of one model, from 1 on, the files stay as they were given.
 * Any thread. */
void source_sort_by_names(struct source *source);

/* GGUF files of a split model say which one they are (split.no). Returns a new source of the same files in that order.
 * NULL: they stand in it already, or do not say it (reading their headers tells what is wrong), or there is no memory
 * or no descriptor for it: any order will do. Blocking; meant for a worker thread. */
struct source *source_sort_by_contents(const struct source *source);
