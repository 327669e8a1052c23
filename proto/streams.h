/* The three standard streams, which a program may be started without. */
#pragma once

/* Opens those that are closed, on /dev/null: what a program opens next must not be taken for one of them, and get its
 * output. First thing in main(). Returns 0, or a negative errno if one is still closed. */
int streams_open(void);
