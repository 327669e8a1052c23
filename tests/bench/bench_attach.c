/* How long attaching takes, memory mapped and the tensor table there: through the client library, as a program does it.
 *
 * usage: bench_attach [each] SOCKET MODEL...
 *
 * The first attachment starts the GPU's runtime in this process. Each further model is one whose handle this process
 * has not opened yet. Then one of them again and again. Prints JSON, in microseconds. With `each`: the time of each
 * model, and none again; and if the module is one that times its calls (timed_calls.h), the sums of these calls in
 * each. */
#include "client/rocmforge.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define AGAIN 200

/* The calls that an import module tells of: sums since the last clear, in microseconds. */
static struct {
    const char *name;
    double us;
} calls[32];
static size_t n_calls;

void timed_call(const char *name, double seconds);

/* The module waits for the thread on which it makes its calls, so no two are at the same time. */
__attribute__((visibility("default"))) void timed_call(const char *name, double seconds)
{
    size_t i = 0;
    while (i < n_calls && strcmp(calls[i].name, name) != 0)
        i++;
    if (i == sizeof(calls) / sizeof(calls[0]))
        return;
    if (i == n_calls)
        calls[n_calls++].name = name;
    calls[i].us += seconds * 1e6;
}

/* Prints and clears what calls there were. */
static void print_calls(FILE *to, const char *before)
{
    fprintf(to, "%s{", before);
    for (size_t i = 0; i < n_calls; i++) {
        fprintf(to, "%s\"%s\": %.1f", i > 0 ? ", " : "", calls[i].name, calls[i].us);
        calls[i].us = 0;
    }
    fprintf(to, "}");
}

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static double attach(rf_client *client, const char *name, rf_model **ret)
{
    const double begin = now_us();
    if (rf_attach(client, name, ret) < 0) {
        fprintf(stderr, "bench_attach: %s: %s\n", name, rf_error_message(client));
        exit(1);
    }
    return now_us() - begin;
}

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static void print_list(const char *name, double *list, size_t n)
{
    qsort(list, n, sizeof(*list), ascending);
    printf(", \"%s\": {\"median\": %.1f, \"least\": %.1f, \"most\": %.1f}", name, list[n / 2], list[0], list[n - 1]);
}

/* Prints each time, in the order in which they were measured. */
static void print_each(const double *list, size_t n)
{
    printf(", \"each\": [");
    for (size_t i = 0; i < n; i++)
        printf("%s%.1f", i > 0 ? ", " : "", list[i]);
    printf("]");
}

int main(int argc, char **argv)
{
    const bool each = argc > 1 && strcmp(argv[1], "each") == 0;
    argc -= each;
    argv += each;
    if (argc < 4 || argc > 100) {
        fprintf(stderr, "usage: bench_attach [each] SOCKET MODEL MODEL...\n");
        return 2;
    }
    rf_client *client;
    if (rf_connect(argv[1], &client) < 0) {
        fprintf(stderr, "bench_attach: %s\n", rf_error_message(NULL));
        return 1;
    }
    rf_model *models[100];
    double fresh[100], again[AGAIN];
    const size_t n = (size_t)argc - 3;
    char *told = NULL;
    size_t told_bytes;
    FILE *telling = open_memstream(&told, &told_bytes);
    if (!telling)
        return 1;
    printf("{\"first\": %.1f", attach(client, argv[2], &models[0]));
    print_calls(telling, ", \"calls_first\": ");
    for (size_t i = 0; i < n; i++) {
        fresh[i] = attach(client, argv[3 + i], &models[1 + i]);
        print_calls(telling, i > 0 ? ", " : ", \"calls\": [");
    }
    fclose(telling);
    for (size_t i = 0; i < AGAIN && !each; i++) {
        rf_model *model;
        again[i] = attach(client, argv[2], &model);
        rf_detach(model);
    }
    if (each) {
        print_each(fresh, n);
        printf("%s]", n_calls > 0 ? told : ", \"calls\": [");
    } else {
        print_list("handle_opened", fresh, n);
        print_list("handle_open_already", again, AGAIN);
    }
    free(told);
    printf("}\n");
    for (size_t i = 0; i <= n; i++)
        rf_detach(models[i]);
    rf_close(client);
    return 0;
}
