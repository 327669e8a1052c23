#include "client/engines/llama/open_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define START_BYTES 65536 /* of a file's start, which are searched for the kind of the file */

/* A line of /proc/self/maps. */
struct map_line {
    unsigned long start, end, inode;
    unsigned major, minor;
    char permissions[5];
    const char *path; /* into the line */
};

static bool map_parse(char *line, struct map_line *ret)
{
    int at = 0;
    unsigned long offset;
    if (sscanf(line, "%lx-%lx %4s %lx %x:%x %lu %n", &ret->start, &ret->end, ret->permissions, &offset, &ret->major,
               &ret->minor, &ret->inode, &at) < 7)
        return false;
    line[strcspn(line, "\n")] = '\0';
    ret->path = line + at;
    return true;
}

static bool path_leads_to(const char *path, dev_t dev, ino_t ino)
{
    struct stat status;
    return path[0] == '/' && stat(path, &status) == 0 && status.st_dev == dev && status.st_ino == ino;
}

/* On file systems with subvolumes, /proc/self/maps and stat() have different device numbers. Then the path decides. */
static bool map_is_of(const struct map_line *line, const struct open_file *file)
{
    if (line->inode != file->ino)
        return false;
    return makedev(line->major, line->minor) == file->dev || path_leads_to(line->path, file->dev, file->ino);
}

static void add_range(struct open_files *files, const struct map_line *line)
{
    for (size_t i = 0; line->inode != 0 && i < files->n_files && files->n_ranges < OPEN_RANGES_MAX; i++)
        if (map_is_of(line, &files->files[i])) {
            files->files[i].mapped = true;
            files->ranges[files->n_ranges++] = (struct open_range){line->start, line->end, i};
            return;
        }
}

static int read_maps(void (*each)(void *context, const struct map_line *line), void *context)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps)
        return -errno;
    char *line = NULL;
    size_t size = 0;
    struct map_line parsed;
    while (getline(&line, &size, maps) > 0)
        if (map_parse(line, &parsed))
            each(context, &parsed);
    free(line);
    fclose(maps);
    return 0;
}

static void each_range(void *context, const struct map_line *line)
{
    add_range(context, line);
}

/* Whether the file is a model: a GGUF file without the key "adapter.type", which adapters have. pread() does not move
 * the file position, so the engine's own reads are not disturbed. The buffer is aligned because a file that is open
 * with O_DIRECT can only be read in whole aligned blocks. */
static bool is_model(int fd, struct stat *ret)
{
    static _Alignas(4096) char start[START_BYTES]; /* one thread at a time */
    if (fstat(fd, ret) < 0 || !S_ISREG(ret->st_mode))
        return false;
    ssize_t n = pread(fd, start, sizeof(start), 0);
    return n >= 4 && memcmp(start, "GGUF", 4) == 0 && !memmem(start, (size_t)n, "adapter.type", strlen("adapter.type"));
}

static bool is_known(const struct open_files *files, const struct stat *status)
{
    for (size_t i = 0; i < files->n_files; i++)
        if (files->files[i].dev == status->st_dev && files->files[i].ino == status->st_ino)
            return true;
    return false;
}

static void add_file(struct open_files *files, int fd)
{
    struct stat status;
    if (files->n_files == OPEN_FILES_MAX || !is_model(fd, &status) || is_known(files, &status))
        return;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, sizeof(path) - 1);
    path[length > 0 ? length : 0] = '\0';
    if (strncmp(path, "/memfd:", strlen("/memfd:")) == 0) /* a header from the daemon, which begins with GGUF */
        return;
    struct open_file *file = &files->files[files->n_files++];
    *file = (struct open_file){.fd = fd, .dev = status.st_dev, .ino = status.st_ino, .size = status.st_size};
    strcpy(file->path, path);
    if (!path_leads_to(file->path, file->dev, file->ino))
        file->path[0] = '\0';
}

int open_files_read(struct open_files *files)
{
    files->n_files = files->n_ranges = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        return -errno;
    for (const struct dirent *entry; (entry = readdir(folder));)
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
            add_file(files, atoi(entry->d_name));
    closedir(folder);
    return files->n_files > 0 ? read_maps(each_range, files) : 0;
}

static int file_at(const struct open_files *files, uintptr_t at)
{
    for (size_t i = 0; i < files->n_ranges; i++)
        if (at >= files->ranges[i].start && at < files->ranges[i].end)
            return (int)files->ranges[i].file;
    return -1;
}

/* If a part of a mapping was locked or advised, the kernel lists it as several ranges that follow each other. So it is
 * enough to look up the first and the last byte. */
int open_files_at(const struct open_files *files, const void *data, size_t size)
{
    int file = file_at(files, (uintptr_t)data);
    if (file < 0 || size == 0 || size > (uintptr_t)files->files[file].size)
        return file;
    return file_at(files, (uintptr_t)data + size - 1) == file ? file : -1;
}

int open_files_find(const struct open_files *files, const char *path)
{
    for (size_t i = 0; i < files->n_files; i++)
        if (path_leads_to(path, files->files[i].dev, files->files[i].ino))
            return (int)i;
    return -1;
}

void open_files_advise(const struct open_files *files, size_t file, bool soon)
{
    for (size_t i = 0; i < files->n_ranges; i++) {
        const struct open_range *range = &files->ranges[i];
        if (range->file != file)
            continue;
        /* This is only advice. If the call fails, nothing is wrong. */
        (void)madvise((void *)range->start, range->end - range->start, MADV_NORMAL);
        if (soon)
            (void)madvise((void *)range->start, range->end - range->start, MADV_WILLNEED);
    }
}

struct writable {
    uintptr_t address;
    bool yes;
};

static void each_writable(void *context, const struct map_line *line)
{
    struct writable *writable = context;
    if (writable->address >= line->start && writable->address < line->end)
        writable->yes = line->permissions[0] == 'r' && line->permissions[1] == 'w';
}

bool open_files_writable(const void *address)
{
    struct writable writable = {.address = (uintptr_t)address};
    return read_maps(each_writable, &writable) == 0 && writable.yes;
}
