#include "daemon/model/access_read.h"

#include "daemon/base/worker.h"
#include "proto/array.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

static const char acl_name[] = "system.posix_acl_access";

/* Whether there is an access control list. size: what getxattr() returned. If getxattr() failed for an unknown reason,
 * a list is assumed. */
static bool is_acl(ssize_t size)
{
    return size >= 0 || (errno != ENODATA && errno != EOPNOTSUPP && errno != ENOSYS);
}

static struct access_entry entry_of(const struct stat *st, bool acl)
{
    return (struct access_entry){.owner = st->st_uid, .group = st->st_gid, .mode = st->st_mode, .acl = acl};
}

int access_read_entry(int fd, struct access_entry *ret)
{
    struct stat st;
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd); /* fgetxattr() takes no descriptor of O_PATH */
    if (fstat(fd, &st) < 0)
        return -errno;
    *ret = entry_of(&st, is_acl(getxattr(link, acl_name, NULL, 0)));
    return 0;
}

struct folders {
    struct access_entry *entries;
    size_t n, capacity;
};

static int folders_add(struct folders *folders, const struct stat *st, bool acl)
{
    if (array_reserve(&folders->entries, &folders->capacity, folders->n, sizeof(*folders->entries), 16) < 0)
        return -ENOMEM;
    folders->entries[folders->n++] = entry_of(st, acl);
    return 0;
}

/* Adds the folder at `path` and all folders above it. Overwrites the text of `path`. Returns 0; -ENOMEM; or -ENOENT:
 * one of the folders is not known. */
static int folders_above(struct folders *folders, char *path)
{
    for (;;) {
        struct stat st;
        const char *folder = path[0] ? path : "/";
        if (lstat(folder, &st) < 0 || !S_ISDIR(st.st_mode))
            return -ENOENT;
        int r = folders_add(folders, &st, is_acl(lgetxattr(folder, acl_name, NULL, 0)));
        char *slash = strrchr(path, '/');
        if (r < 0 || !slash)
            return r;
        *slash = '\0';
    }
}

/* Whether the file has no name any more. */
static bool lost_name(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_nlink == 0;
}

/* Adds the folders above all files. The kernel's own path of an open file is used, which has no symbolic links. At the
 * end the path must still lead to the file, else -ENOENT; *ret_lost: a file has no name any more, and the path is what
 * it last was. Other errors are those of folders_above(). */
static int folders_of(const struct source *source, struct folders *ret, bool *ret_lost)
{
    *ret_lost = false;
    char *last = NULL; /* the folder of the file before; most often all files are in one folder */
    int r = 0;
    for (size_t i = 0; i < source->n_files && r == 0; i++) {
        char *path = source_fd_path(source->files[i].fd);
        char *whole = path ? strdup(path) : NULL;
        char *slash = path ? strrchr(path, '/') : NULL;
        if (!whole || !slash)
            r = path ? -ENOMEM : -ENOENT;
        else {
            *slash = '\0';
            char *folder = strdup(path);
            if (!folder)
                r = -ENOMEM;
            else if (!last || strcmp(folder, last) != 0)
                r = folders_above(ret, path);
            free(last);
            last = folder;
        }
        const bool lost = lost_name(source->files[i].fd);
        *ret_lost = *ret_lost || lost;
        if (r == 0 && !lost && !source_is_at(whole, source->files[i].fd))
            r = -ENOENT;
        free(whole);
        free(path);
    }
    free(last);
    return r;
}

/* Whether the folders may be those that the files were in before: as many, of the same owners. At the path of a file
 * that was deleted there may be folders that somebody else made since. */
static bool same_folders(const struct folders *folders, const struct access_facts *before)
{
    bool same = before && before->placed && before->n_folders == folders->n;
    for (size_t i = 0; same && i < folders->n; i++)
        same = folders->entries[i].owner == before->entries[before->n_files + i].owner;
    return same;
}

static int files_of(const struct source *source, struct access_entry *ret, struct device_fault *ret_fault)
{
    for (size_t i = 0; i < source->n_files; i++) {
        struct stat st;
        const int fd = source->files[i].fd;
        if (fstat(fd, &st) < 0)
            return device_fault_set(ret_fault, -errno, "fstat", errno, strerror(errno));
        ret[i] = entry_of(&st, is_acl(fgetxattr(fd, acl_name, NULL, 0)));
    }
    return 0;
}

int access_read(const struct source *source, const struct access_facts *before, struct access_facts **ret,
                struct device_fault *ret_fault)
{
    struct folders folders = {0};
    struct access_facts *facts = NULL;
    struct access_entry *entries = NULL;
    if (source->n_files == 0) /* a model without files: facts about no file would permit everybody */
        return device_fault_set(ret_fault, -ENOENT, "fstat", ENOENT, "there is no file");
    worker_file_begin();
    bool lost;
    int r = folders_of(source, &folders, &lost);
    const bool placed = r == 0 && (!lost || same_folders(&folders, before));
    const size_t n_above = placed ? folders.n : 0;
    if (r != -ENOMEM)
        r = access_facts_new(source->n_files, n_above, &facts, &entries);
    if (r == -ENOMEM)
        device_fault_set(ret_fault, r, "malloc", ENOMEM, strerror(ENOMEM));
    else {
        facts->placed = placed;
        if (n_above > 0)
            memcpy(entries + source->n_files, folders.entries, n_above * sizeof(*entries));
        r = files_of(source, entries, ret_fault);
    }
    worker_file_end();
    free(folders.entries);
    if (r < 0) {
        access_facts_unref(facts);
        return r;
    }
    *ret = facts;
    return 0;
}
