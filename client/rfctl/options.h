/* The options of the command line. All of them are in one table: an option means the same for every command. So options
 * can be read before the command is known, and may stand before or after it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* One bit for each option. A command has the bits of the options that it takes. */
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
    OPTION_METADATA = 1 << 13,
    OPTION_PUBLIC = 1 << 14,
    OPTION_REPLACE = 1 << 15,
    OPTION_HTTP = 1 << 18,
    OPTION_LAYOUT = 1 << 19,
    OPTION_TP = 1 << 20,
    /* Every command takes these two. */
    OPTION_SOCKET = 1 << 16,
    OPTION_JSON = 1 << 17,
};

#define OPTIONS_OF_ALL (OPTION_SOCKET | OPTION_JSON)

/* How often an option that can be repeated may be given. */
#define OPTION_LIST_MAX 64u

struct option_list {
    const char *words[OPTION_LIST_MAX];
    size_t n;
};

/* The part RANK of SIZE; size 0: not given. */
struct option_part {
    uint32_t rank;
    uint32_t size;
};

/* The options that were given. Texts are borrowed from argv; NULL: not given. */
struct options {
    bool wrong; /* an option was wrong; that was printed to standard error */
    const char *socket;
    bool json;
    bool help;
    bool version;
    const char *name;
    struct option_list as;
    const char *layout;
    struct option_part tp;
    const char *device;
    const char *dequant;
    const char *trace;
    const char *metadata;
    bool no_wait;
    bool pin;
    bool private;
    bool public;
    bool replace;
    bool force;
    bool http;
    uint64_t ttl;             /* seconds; 0: not given */
    uint64_t deadline;        /* seconds; 0: not given */
    uint64_t wait_for_memory; /* seconds; 0: not given */
    unsigned long count;      /* 0: not given */
};

/* Reads the options in argv. Moves the other words (the command, then its arguments) to the end of argv, and returns
 * the index of the first of them. Words after "--" are never options. *ret_given is set to the bits of the given
 * options. */
int options_parse(int argc, char **argv, struct options *ret, unsigned *ret_given);

/* The same up to the first word that is no option: what stands behind it is another program's. */
int options_parse_before(int argc, char **argv, struct options *ret, unsigned *ret_given);

/* Index of the first word that is no option; argc: there is none. Moves nothing and says nothing. */
int options_first_word(int argc, char **argv);

/* The name of the lowest option in `bits`, without dashes. */
const char *option_name(unsigned bits);

/* Prints the help of each option in `bits`, and of --help and --version. */
void options_help(FILE *stream, unsigned bits);
