/* Times what a client waits for, through librocmforge, and prints it as JSON.
 *
 *     bench_client attach MODEL COUNT   attaches and detaches; the first one apart
 *     bench_client ping SECONDS         round trips, one after the other, a millisecond between them
 */
#include <rocmforge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Median and 99th percentile, in microseconds. */
static void print_times(const char *name, double *times, size_t n, const char *end)
{
    qsort(times, n, sizeof(*times), compare);
    printf("\"%s\": {\"median\": %.1f, \"p99\": %.1f}%s", name, times[n / 2] * 1e6, times[n * 99 / 100] * 1e6, end);
}

static int fail(const rf_client *client, const char *what)
{
    fprintf(stderr, "bench_client: %s: %s\n", what, rf_error_message(client));
    return EXIT_FAILURE;
}

static int bench_attach(rf_client *client, const char *name, size_t n)
{
    double *attach = calloc(n, sizeof(*attach)), *detach = calloc(n, sizeof(*detach));
    if (!attach || !detach)
        return EXIT_FAILURE;
    double first = 0;
    unsigned sum = 0;
    for (size_t i = 0; i < n + 1; i++) {
        rf_model *model;
        rf_tensor tensor;
        double begin = now();
        if (rf_attach(client, name, &model) < 0 || rf_model_tensor(model, rf_model_tensors(model) / 2, &tensor) < 0)
            return fail(client, "attach");
        sum += *(const unsigned char *)tensor.data; /* its bytes are there */
        double middle = now();
        rf_detach(model);
        double end = now();
        if (i == 0)
            first = middle - begin;
        else {
            attach[i - 1] = middle - begin;
            detach[i - 1] = end - middle;
        }
    }
    printf("{\"first\": %.1f, ", first * 1e6);
    print_times("attach", attach, n, ", ");
    print_times("detach", detach, n, ", ");
    printf("\"sum\": %u}\n", sum);
    free(attach);
    free(detach);
    return EXIT_SUCCESS;
}

static int bench_ping(rf_client *client, double seconds)
{
    size_t capacity = (size_t)(seconds * 1000) + 1, n = 0;
    double *times = calloc(capacity, sizeof(*times));
    if (!times)
        return EXIT_FAILURE;
    for (double end = now() + seconds; n < capacity && now() < end; n++) {
        double begin = now();
        if (rf_call(client, "Status", NULL, 0, NULL, 0, NULL, NULL) < 0)
            return fail(client, "ping");
        times[n] = now() - begin;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    printf("{");
    print_times("ping", times, n, ", ");
    printf("\"count\": %zu}\n", n);
    free(times);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    rf_client *client;
    if (rf_connect(NULL, &client) < 0)
        return fail(NULL, "connect");
    int status = 2;
    if (argc == 4 && strcmp(argv[1], "attach") == 0 && atol(argv[3]) > 0)
        status = bench_attach(client, argv[2], (size_t)atol(argv[3]));
    else if (argc == 3 && strcmp(argv[1], "ping") == 0)
        status = bench_ping(client, atof(argv[2]));
    rf_close(client);
    return status;
}
