/* The three standard streams. A program may be started with some of them closed. */
#pragma once

/* Opens /dev/null in place of each standard stream that is closed. Otherwise the next file or socket that the program
 * opens would get that number, and the program's output would go there. Call it first in main(). Returns 0, or a
 * negative errno if a stream is still closed. */
int streams_open(void);
