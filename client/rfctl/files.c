#include "client/rfctl/files.h"

#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_MAX_ 127 /* bytes of a model's name */

static const char suffix[] = ".gguf";

static int add(struct files *files, const char *path, const char *verb)
{
    struct stat status;
    /* Not to hang on a FIFO that nobody writes to. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    int r = fd < 0 || fstat(fd, &status) < 0 ? -errno : S_ISREG(status.st_mode) ? 0 : -EINVAL;
    if (r < 0) {
        err_line("cannot %s %s: %s", verb, path, r == -EINVAL ? "this is not a regular file" : strerror(-r));
        if (fd >= 0)
            close(fd);
        return r;
    }
    files->fds[files->n++] = fd;
    return 0;
}

/* The number of files of the model whose first one this is; 1 if the name does not say so. */
static unsigned count(const char *path)
{
    static const char first[] = "-00001-of-", example[] = "-00001-of-00003.gguf";
    size_t size = strlen(path), tail = strlen(example);
    if (size < tail || strncmp(path + size - tail, first, strlen(first)) != 0 ||
        strcmp(path + size - strlen(suffix), suffix) != 0)
        return 1;
    unsigned n = 0;
    const char *digits = path + size - tail + strlen(first);
    for (size_t i = 0; i < 5; i++) {
        if (!isdigit((unsigned char)digits[i]))
            return 1;
        n = 10 * n + (unsigned)(digits[i] - '0');
    }
    return n > 0 && n <= FILES_MAX ? n : 1;
}

int files_open_one(struct files *files, const char *path, const char *verb)
{
    files->n = 0;
    return add(files, path, verb);
}

int files_open(struct files *files, const char *path, const char *verb)
{
    files->n = 0;
    unsigned n = count(path);
    if (n == 1)
        return add(files, path, verb);
    int prefix = (int)(strlen(path) - strlen("-00001-of-00003.gguf"));
    int r = 0;
    for (unsigned i = 1; i <= n && r == 0; i++) {
        char *part = need_text("%.*s-%05u-of-%05u.gguf", prefix, path, i, n);
        r = add(files, part, verb);
        free(part);
    }
    return r;
}

void files_close(struct files *files)
{
    while (files->n > 0)
        close(files->fds[--files->n]);
}

char *files_link_name(const char *path)
{
    struct stat status;
    if (lstat(path, &status) < 0 || !S_ISLNK(status.st_mode))
        return NULL;
    const char *slash = strrchr(path, '/');
    char *name = need_text("%s", slash ? slash + 1 : path);
    size_t n = strlen(name);
    if (n > strlen(suffix) && strcasecmp(name + n - strlen(suffix), suffix) == 0)
        n -= strlen(suffix);
    name[n < NAME_MAX_ ? n : NAME_MAX_] = '\0';
    for (char *at = name; *at; at++)
        if (!isalnum((unsigned char)*at) && !strchr("._-:@+", *at))
            *at = '_';
    return name;
}
