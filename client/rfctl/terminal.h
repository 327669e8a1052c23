/* The terminal that output goes to. */
#pragma once

#include <stddef.h>

/* Columns of the terminal at `fd`; 0: `fd` is no terminal. */
size_t terminal_width(int fd);
