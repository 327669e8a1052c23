#include "client/files.h"

#include "client/client.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

void files_close(struct files *files)
{
    while (files->n > 0)
        close(files->fds[--files->n]);
}

static int files_add(struct files *files, rf_client *client, const char *path)
{
    /* Whoever waits for the other end of a pipe here waits for ever. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return client_fail(client, -errno, "cannot open %s: %s", path, strerror(errno));
    files->fds[files->n++] = fd;
    struct stat status;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return client_fail(client, -EINVAL, "%s is no regular file", path);
    return 0;
}

/* The number of files of a model whose first one is called "...-00001-of-00003.gguf", and how much of the path the
 * others share with it; 1 for any other name. */
static unsigned split_count(const char *path, int *ret_prefix)
{
    static const char first[] = "-00001-of-", pattern[] = "-00001-of-00003.gguf";
    size_t length = strlen(path);
    if (length < strlen(pattern) || length > PATH_MAX)
        return 1;
    const char *tail = path + length - strlen(pattern);
    const char *digits = tail + strlen(first);
    if (strncmp(tail, first, strlen(first)) != 0 || strcmp(digits + 5, ".gguf") != 0)
        return 1;
    unsigned n = 0;
    for (int i = 0; i < 5; i++) {
        if (!isdigit((unsigned char)digits[i]))
            return 1;
        n = 10 * n + (unsigned)(digits[i] - '0');
    }
    *ret_prefix = (int)(tail - path);
    return n > 0 && n <= FRAME_FDS_MAX ? n : 1;
}

int files_open(struct files *files, rf_client *client, const char *path)
{
    int prefix = 0;
    unsigned n = split_count(path, &prefix);
    if (n == 1)
        return files_add(files, client, path);
    for (unsigned i = 1; i <= n; i++) {
        char part[PATH_MAX + 32];
        snprintf(part, sizeof(part), "%.*s-%05u-of-%05u.gguf", prefix, path, i, n);
        int r = files_add(files, client, part);
        if (r < 0)
            return r;
    }
    return 0;
}

void files_link_name(const char *path, char name[static RF_NAME_SIZE])
{
    struct stat status;
    name[0] = '\0';
    if (lstat(path, &status) < 0 || !S_ISLNK(status.st_mode))
        return;
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    size_t n = strlen(base);
    if (n > 5 && strcasecmp(base + n - 5, ".gguf") == 0)
        n -= 5;
    if (n >= RF_NAME_SIZE)
        n = RF_NAME_SIZE - 1;
    for (size_t i = 0; i < n; i++)
        name[i] = isalnum((unsigned char)base[i]) || strchr("._-:@+", base[i]) ? base[i] : '_';
    name[n] = '\0';
}
