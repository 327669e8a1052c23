#include "daemon/model/source_look.h"

#include "daemon/base/worker.h"

#include <stdlib.h>
#include <sys/stat.h>

/* path: the path when the file was opened; NULL: the kernel's present path of the file is used. */
static enum source_look file_look(const struct source_file *file, const char *path)
{
    const struct identity *then = &file->identity;
    char *known = path ? NULL : source_fd_path(file->fd);
    struct stat st;
    const bool there = (path || known) && stat(path ? path : known, &st) == 0 && S_ISREG(st.st_mode);
    free(known);
    if (!there)
        return path ? file_look(file, NULL) : SOURCE_THERE;
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
        const enum source_look look = file_look(&source->files[i], source->files[i].path);
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
        if (file->path && stat(file->path, &st) == 0 &&
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
