#include "daemon/model/common_path.h"

#include "daemon/model/access_read.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* As many as the kernel follows. */
#define LINKS_MAX 40u

struct walk {
    int folder;              /* where `rest` begins */
    char rest[2 * PATH_MAX]; /* of the path, with what links lead to in place of the links; "" or from a slash on after
                                each step */
    unsigned n_links;
};

/* Goes on in this folder, whose descriptor is taken over. -EACCES. */
static int enter(struct walk *walk, int folder)
{
    struct statfs system;
    struct access_entry entry;
    int r = fstatfs(folder, &system) < 0 ? -errno : access_read_entry(folder, &entry);
    if (r == 0 && (system.f_type == PROC_SUPER_MAGIC || !access_all_may_search(&entry)))
        r = -EACCES;
    if (r < 0) {
        close(folder);
        return r;
    }
    if (walk->folder >= 0)
        close(walk->folder);
    walk->folder = folder;
    return 0;
}

static int enter_root(struct walk *walk)
{
    const int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return root < 0 ? -errno : enter(walk, root);
}

/* Puts what the link leads to before the rest. */
static int follow(struct walk *walk, int link)
{
    char target[PATH_MAX], rest[sizeof(walk->rest)];
    const ssize_t n = readlinkat(link, "", target, sizeof(target) - 1);
    if (n < 0)
        return -errno;
    target[n] = '\0';
    strcpy(rest, walk->rest);
    if (++walk->n_links > LINKS_MAX)
        return -ELOOP;
    if ((size_t)snprintf(walk->rest, sizeof(walk->rest), "%s%s", target, rest) >= sizeof(walk->rest))
        return -ENAMETOOLONG;
    return target[0] == '/' ? enter_root(walk) : 0;
}

/* Takes the first name off the rest, and follows it. */
static int step(struct walk *walk)
{
    char name[NAME_MAX + 1];
    struct stat status;
    const size_t n = strcspn(walk->rest, "/");
    if (n > NAME_MAX)
        return -ENAMETOOLONG;
    memcpy(name, walk->rest, n);
    name[n] = '\0';
    memmove(walk->rest, walk->rest + n, strlen(walk->rest + n) + 1);
    const int fd = openat(walk->folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    const int known = fstat(fd, &status) < 0 ? -errno : 0;
    if (known == 0 && S_ISDIR(status.st_mode))
        return enter(walk, fd);
    const int r = known < 0 ? known : S_ISLNK(status.st_mode) ? follow(walk, fd) : walk->rest[0] ? -ENOTDIR : 0;
    close(fd);
    return r;
}

int common_path_check(const char *path)
{
    struct walk walk = {.folder = -1};
    if (path[0] != '/' || strlen(path) >= PATH_MAX)
        return -EACCES;
    strcpy(walk.rest, path);
    int r = enter_root(&walk);
    while (r == 0) {
        const size_t slashes = strspn(walk.rest, "/");
        memmove(walk.rest, walk.rest + slashes, strlen(walk.rest + slashes) + 1);
        if (!walk.rest[0])
            break;
        r = step(&walk);
    }
    if (walk.folder >= 0)
        close(walk.folder);
    return r;
}
