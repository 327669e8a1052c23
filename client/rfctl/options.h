/* The options of the command line. One table has them all: an option means the same wherever it is taken, so that it
 * may stand before or after the command. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* One bit each: a command says which it takes. */
enum option_bits {
    OPTION_NAME = 1 << 0,
    OPTION_AS = 1 << 1,
    OPTION_DEVICE = 1 << 2,
    OPTION_DEQUANT = 1 << 3,
    OPTION_NO_WAIT = 1 << 4,
    OPTION_COUNT = 1 << 5,
    OPTION_PIN = 1 << 6,
    OPTION_TTL = 1 << 7,
    OPTION_PRIVATE = 1 << 8,
    OPTION_DEADLINE = 1 << 9,
    OPTION_FORCE = 1 << 10,
    OPTION_TRACE = 1 << 11,
    /* Every command takes these two. */
    OPTION_SOCKET = 1 << 12,
    OPTION_JSON = 1 << 13,
};

#define OPTIONS_OF_ALL (OPTION_SOCKET | OPTION_JSON)

/* What was given; text points into argv, and is NULL if it was not. */
struct options {
    bool wrong; /* something of it, which was said on standard error */
    const char *socket;
    bool json;
    bool help;
    bool version;
    const char *name;
    const char *form;
    const char *device;
    const char *dequant;
    const char *trace;
    bool no_wait;
    bool pin;
    bool private;
    bool force;
    uint64_t ttl;        /* seconds; 0: not given */
    uint64_t deadline;   /* the same */
    unsigned long count; /* 0: not given */
};

/* Reads the options out of argv, and moves the other words, the command first, to its end. Returns the index of the
 * first of these, and sets *ret_given to the options' bits. */
int options_parse(int argc, char **argv, struct options *ret, unsigned *ret_given);

/* The same up to the first word that is no option: what stands behind it is another program's. */
int options_parse_before(int argc, char **argv, struct options *ret, unsigned *ret_given);

/* Index of the first word that is no option; argc: there is none. Moves nothing and says nothing. */
int options_first_word(int argc, char **argv);

/* The name of the lowest option in `bits`, without dashes. */
const char *option_name(unsigned bits);

/* Writes a line for each option in `bits`, and for --help and --version. */
void options_help(FILE *stream, unsigned bits);
