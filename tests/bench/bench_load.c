/* How long loads take, from the request to the answer, as a program in C sees it.
 *
 *     bench_load SOCKET FILE TIMES REST_MS [NAME VALUE]...
 *     bench_load SOCKET lines FILE...
 *
 * Loads FILE so often, after a rest each time, and unloads it. NAME VALUE: of a parameter of Load that is a string.
 * Prints JSON: for each load its seconds, and what the daemon answered.
 *
 * The second way loads when it is told to, by lines of its input, and answers each with one line of such JSON:
 *
 *     N PARAMETERS    load the Nth file (from 0); PARAMETERS: those of Load, as JSON
 *     unload NAME
 */
#include <errno.h>
#include <fcntl.h>
#include <rocmforge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MODEL "bench"

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int keep(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    (void)continues;
    (void)fds;
    (void)n_fds;
    *(char **)context = strdup(parameters);
    return 0;
}

static int load(rf_client *client, int fd, const char *parameters, const char *before)
{
    char *answer = NULL;
    const double begin = now();
    int r = rf_call(client, "Load", parameters, 0, &fd, 1, keep, &answer);
    const double seconds = now() - begin;
    if (r == 0)
        printf("%s{\"seconds\": %.7f, \"answer\": %s}", before, seconds, answer ? answer : "null");
    free(answer);
    return r;
}

static int unload(rf_client *client, const char *name)
{
    const double begin = now();
    int r = rf_unload(client, name);
    if (r == 0)
        printf("{\"seconds\": %.7f}", now() - begin);
    return r;
}

/* Does what one line of the input says. -EINVAL: it says nothing that can be done. */
static int obey(rf_client *client, char *line, char **paths, int n_paths)
{
    char *rest;
    line[strcspn(line, "\n")] = '\0';
    if (strncmp(line, "unload ", 7) == 0)
        return unload(client, line + 7);
    const long index = strtol(line, &rest, 10);
    if (rest == line || index < 0 || index >= n_paths)
        return -EINVAL;
    int fd = open(paths[index], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = load(client, fd, rest, "");
    close(fd);
    return r;
}

static int lines(rf_client *client, char **paths, int n_paths)
{
    char line[4096];
    int r = 0;
    while (r == 0 && fgets(line, sizeof(line), stdin)) {
        r = obey(client, line, paths, n_paths);
        printf("\n");
        fflush(stdout);
    }
    if (r < 0)
        fprintf(stderr, "bench_load: %s: %s\n", strerror(-r), rf_error_message(client));
    return r;
}

int main(int argc, char **argv)
{
    if (argc >= 4 && strcmp(argv[2], "lines") == 0) {
        rf_client *client;
        if (rf_connect(argv[1], &client) < 0) {
            fprintf(stderr, "bench_load: %s\n", rf_error_message(NULL));
            return 1;
        }
        int r = lines(client, argv + 3, argc - 3);
        rf_close(client);
        return r < 0;
    }
    if (argc < 5 || argc % 2 == 0) {
        fprintf(stderr, "usage: bench_load SOCKET FILE TIMES REST_MS [NAME VALUE]...\n"
                        "       bench_load SOCKET lines FILE...\n");
        return 2;
    }
    char parameters[1024] = "{\"fds\": [0], \"name\": \"" MODEL "\"";
    for (int i = 5; i < argc; i += 2) {
        const size_t used = strlen(parameters);
        snprintf(parameters + used, sizeof(parameters) - used, ", \"%s\": \"%s\"", argv[i], argv[i + 1]);
    }
    strncat(parameters, "}", sizeof(parameters) - strlen(parameters) - 1);
    const long rest_ms = strtol(argv[4], NULL, 10);
    const struct timespec rest = {.tv_sec = rest_ms / 1000, .tv_nsec = rest_ms % 1000 * 1000000};
    rf_client *client;
    int fd = open(argv[2], O_RDONLY | O_CLOEXEC);
    int r = fd < 0 ? -errno : rf_connect(argv[1], &client);
    if (r < 0) {
        fprintf(stderr, "bench_load: %s\n", fd < 0 ? strerror(-r) : rf_error_message(NULL));
        return 1;
    }
    for (long i = 0; i < strtol(argv[3], NULL, 10) && r == 0; i++) {
        nanosleep(&rest, NULL);
        r = load(client, fd, parameters, i == 0 ? "[" : ",\n ");
        r = r < 0 ? r : rf_unload(client, MODEL);
    }
    if (r < 0)
        fprintf(stderr, "bench_load: %s\n", rf_error_message(client));
    else
        printf("]\n");
    rf_close(client);
    close(fd);
    return r < 0;
}
