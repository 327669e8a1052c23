/* The options of the command line. One table has them all: an option means the same wherever it is taken, so that it
 * may stand before or after the command. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
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
    OPTION_WAIT_FOR_MEMORY = 1 << 12,
    /* Every command takes these two. */
    OPTION_SOCKET = 1 << 12,
    OPTION_JSON = 1 << 13,
    OPTION_METADATA = 1 << 14,
};

#define OPTIONS_OF_ALL (OPTION_SOCKET | OPTION_JSON)

/* How often an option may be given that means more each time. */
#define OPTION_LIST_MAX 64u

struct option_list {
    const char *words[OPTION_LIST_MAX];
    size_t n;
};

/* What was given; text points into argv, and is NULL if it was not. */
struct options {
    bool wrong; /* something of it, which was said on standard error */
    const char *socket;
    bool json;
    bool help;
    bool version;
    const char *name;
    struct option_list as;
    const char *device;
    const char *dequant;
    const char *trace;
    const char *metadata;
    bool no_wait;
    bool pin;
    bool private;
    bool force;
    uint64_t ttl;        /* seconds; 0: not given */
    uint64_t deadline;   /* the same */
    uint64_t wait_for_memory;
    unsigned long count; /* 0: not given */
};

/* Reads the options out of argv, and moves the other words, the command first, to its end. Returns the index of the
 * first of these, and sets *ret_given to the options' bits. */
int options_parse(int argc, char **argv, struct options *ret, unsigned *ret_given);

/* The name of the lowest option in `bits`, without dashes. */
const char *option_name(unsigned bits);

/* Writes a line for each option in `bits`, and for --help and --version. */
void options_help(FILE *stream, unsigned bits);
