#include "daemon/base/last_words.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

/* Calls only what signal-safety(7) allows, and two functions of glibc that read a table. */
static void aborted(int number)
{
    const int error = errno;
    const char *name = strerrorname_np(error);
    const char *const parts[] = {
        "rocmforged: error: the process aborts; the last error of a system call in this thread: ", name ? name : "none",
        "\n"};
    char line[256];
    size_t size = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        const size_t length = strlen(parts[i]);
        memcpy(line + size, parts[i], length);
        size += length;
    }
    (void)!write(STDERR_FILENO, line, size);
    (void)number; /* the handler is reset: returning from it ends the process */
}

void last_words_begin(void)
{
    const struct sigaction action = {.sa_handler = aborted, .sa_flags = (int)SA_RESETHAND};
    (void)sigaction(SIGABRT, &action, NULL);
}
