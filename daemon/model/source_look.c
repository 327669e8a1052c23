#include "daemon/model/source_look.h"

#include "daemon/base/worker.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Finds what is at the path of the file, or, if nothing is, at the kernel's present path of it. A path that the daemon
 * never saw the file at says nothing: then it is the open file itself. Returns false if nothing is there. */
static bool find_now(const struct source_file *file, struct stat *ret)
{
    if (!file->seen)
        return fstat(file->fd, ret) == 0 && ret->st_nlink > 0;
    if (stat(file->path, ret) == 0 && S_ISREG(ret->st_mode))
        return true;
    char *known = source_fd_path(file->fd);
    const bool there = known && stat(known, ret) == 0 && S_ISREG(ret->st_mode);
    free(known);
    return there;
}

static enum source_look file_look(const struct source_file *file)
{
    const struct identity *then = &file->identity;
    struct stat st;
    if (!find_now(file, &st))
        return SOURCE_THERE;
    if ((uint64_t)st.st_size != then->size || st.st_dev != then->dev || st.st_ino != then->ino)
        return SOURCE_OTHER;
    const struct identity now = identity_of(&st);
    return now.mtime_ns == then->mtime_ns && now.ctime_ns == then->ctime_ns ? SOURCE_THERE : SOURCE_TOUCHED;
}

/* Whether the path that the files were opened by leads to another file now. */
static bool link_switched(const struct source *source)
{
    struct stat st;
    return source->link && stat(source->link, &st) == 0 && S_ISREG(st.st_mode) && !source_has_file(source, &st);
}

enum source_look source_look(const struct source *source)
{
    worker_file_begin();
    enum source_look worst = link_switched(source) ? SOURCE_OTHER : SOURCE_THERE;
    for (size_t i = 0; i < source->n_files; i++) {
        const enum source_look look = file_look(&source->files[i]);
        worst = look > worst ? look : worst;
    }
    worker_file_end();
    return worst;
}

static bool files_replaced(const struct source *source)
{
    for (size_t i = 0; i < source->n_files; i++) {
        const struct source_file *file = &source->files[i];
        struct stat st;
        if (file->seen && stat(file->path, &st) == 0 &&
            (st.st_dev != file->identity.dev || st.st_ino != file->identity.ino))
            return true;
    }
    return link_switched(source);
}

bool source_replaced(const struct source *source)
{
    worker_file_begin();
    const bool replaced = files_replaced(source);
    worker_file_end();
    return replaced;
}

/* Whether the file cannot have had a name when it was opened: it is in memory (memfd_create), or was made without one
 * (O_TMPFILE). The kernel tells a path of such files, too. */
static bool is_anonymous(const struct source_file *file)
{
    char number[32];
    snprintf(number, sizeof(number), "/#%" PRIu64, file->identity.ino);
    const char *name = file->path ? strrchr(file->path, '/') : NULL;
    return file->links == 0 && (!name || strncmp(file->path, "/memfd:", 7) == 0 || strcmp(name, number) == 0);
}

static bool file_deleted(const struct source_file *file)
{
    struct stat st;
    if (is_anonymous(file) || fstat(file->fd, &st) < 0 || st.st_nlink > 0)
        return false;
    /* What is in a folder that the daemon cannot search is not known: the file may have been replaced. */
    return !file->path || (stat(file->path, &st) < 0 && (errno == ENOENT || errno == ENOTDIR));
}

bool source_deleted(const struct source *source)
{
    worker_file_begin();
    bool deleted = false;
    for (size_t i = 0; i < source->n_files && !deleted; i++)
        deleted = file_deleted(&source->files[i]);
    deleted = deleted && !link_switched(source);
    worker_file_end();
    return deleted;
}

static int check_files(const struct source *source, bool untouched, struct device_fault *ret_fault)
{
    for (size_t i = 0; i < source->n_files; i++) {
        const struct identity *then = &source->files[i].identity;
        struct identity now = {0};
        uint64_t links = 0;
        mode_t mode;
        int r = identity_read(source->files[i].fd, &now, &links, &mode, ret_fault);
        if (r < 0)
            return r;
        const bool same_names = links == source->files[i].links;
        if (!identity_equal(&now, then) || (untouched && same_names && now.ctime_ns != then->ctime_ns))
            return device_fault_set(ret_fault, -ESTALE, "fstat", 0, "the file's size or times changed");
    }
    return 0;
}

int source_check(const struct source *source, struct device_fault *ret_fault)
{
    return check_files(source, false, ret_fault);
}

int source_check_untouched(const struct source *source, struct device_fault *ret_fault)
{
    return check_files(source, true, ret_fault);
}
