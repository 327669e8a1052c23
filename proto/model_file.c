#include "proto/model_file.h"

#include "proto/folder.h"
#include "proto/min.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static const char extension[] = ".gguf", other_extension[] = ".safetensors";

static bool name_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("._-:@+", c));
}

int model_name_check(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > MODEL_NAME_MAX || name[0] == '-')
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (!name_character(name[i]))
            return -EINVAL;
    return 0;
}

/* The length of a text without this ending, whatever its case; 0: it does not end so, or is nothing else. */
static size_t without(const char *text, size_t n, const char *ending)
{
    const size_t length = strlen(ending);
    return n > length && strncasecmp(text + n - length, ending, length) == 0 ? n - length : 0;
}

/* "model", or "model-00001-of-00003": every folder of Hugging Face's has such a file, and the folder has the name. */
static bool names_nothing(const char *base, size_t n)
{
    return n >= 5 && strncmp(base, "model", 5) == 0 && (n == 5 || (n == 20 && strncmp(base + 11, "-of-", 4) == 0));
}

/* One part of a path, up to `end`: *ret_size is its length. */
static const char *part_before(const char *path, const char *end, size_t *ret_size)
{
    const char *begin = end;
    while (begin > path && begin[-1] != '/')
        begin--;
    *ret_size = (size_t)(end - begin);
    return begin;
}

/* The name of the folder of `base`, a part of `path`. In Hugging Face's cache, that of the model:
 * ".../models--ORG--NAME/snapshots/REVISION/model.safetensors". NULL: the path has no folder. */
static const char *folder_of(const char *path, const char *base, size_t *ret_size)
{
    static const char prefix[] = "models--", middle[] = "snapshots";
    size_t size, above_size, cache_size;
    while (base > path && base[-1] == '/')
        base--;
    if (base == path)
        return NULL;
    const char *folder = part_before(path, base, &size);
    if (size == 0)
        return NULL;
    *ret_size = size;
    if (folder - path < 2)
        return folder;
    const char *above = part_before(path, folder - 1, &above_size);
    if (above_size != strlen(middle) || strncmp(above, middle, above_size) != 0 || above - path < 2)
        return folder;
    const char *cache = part_before(path, above - 1, &cache_size);
    if (cache_size <= strlen(prefix) || strncmp(cache, prefix, strlen(prefix)) != 0)
        return folder;
    const char *name = cache + strlen(prefix), *end = cache + cache_size;
    for (const char *at = name; at + 2 < end; at++)
        if (at[0] == '-' && at[1] == '-')
            name = at + 2;
    *ret_size = (size_t)(end - name);
    return name;
}

void model_name_derive(const char *path, char name[MODEL_NAME_MAX + 1])
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    const char *base = slash ? slash + 1 : path ? path : "";
    size_t n = strlen(base);
    const size_t gguf = without(base, n, extension), other = without(base, n, other_extension);
    n = gguf ? gguf : other ? other : n;
    if (other && names_nothing(base, n)) {
        size_t size;
        const char *folder = folder_of(path, base, &size);
        n = folder ? size : n;
        base = folder ? folder : base;
    }
    n = min_u64(n, MODEL_NAME_MAX);
    for (size_t i = 0; i < n; i++)
        name[i] = name_character(base[i]) && (i > 0 || base[i] != '-') ? base[i] : '_';
    name[n] = '\0';
    if (n == 0)
        strcpy(name, "model");
}

void model_name_part(char name[MODEL_NAME_MAX + 1], unsigned rank, unsigned size)
{
    char part[32];
    if (size < 2)
        return;
    const size_t n = (size_t)snprintf(part, sizeof(part), ".tp%uof%u", rank, size);
    strcpy(name + min_u64(strlen(name), MODEL_NAME_MAX - n), part);
}

/* After the folder's own name, which "." and "..", for instance, do not tell. */
static bool folder_name(const char *path, char name[MODEL_NAME_MAX + 1])
{
    char *real = realpath(path, NULL), *file = NULL;
    const bool known = real && asprintf(&file, "%s/" FOLDER_FILE, real) >= 0;
    if (known) {
        model_name_derive(file, name);
        free(file);
    }
    free(real);
    return known;
}

/* A path that begins at no folder has the present one's name before it. */
static bool link_name(const char *path, char name[MODEL_NAME_MAX + 1])
{
    char *here = strchr(path, '/') ? NULL : realpath(".", NULL), *whole = NULL;
    if (here && asprintf(&whole, "%s/%s", here, path) < 0)
        whole = NULL;
    model_name_derive(whole ? whole : path, name);
    free(whole);
    free(here);
    return true;
}

/* A link to an open file of a process, "/proc/self/fd/3", or one that leads to such a link, as "/dev/stdin" does: its
 * name says nothing. */
static bool is_descriptor(const char *path)
{
    static const char proc[] = "/proc/";
    char target[sizeof(proc)] = "";
    return strncmp(path, proc, strlen(proc)) == 0 || strncmp(path, "/dev/fd/", 8) == 0 ||
           (readlink(path, target, sizeof(target) - 1) > 0 && strcmp(target, proc) == 0);
}

bool model_name_of_link(const char *path, char name[MODEL_NAME_MAX + 1])
{
    struct stat status;
    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode))
        return folder_name(path, name);
    return lstat(path, &status) == 0 && S_ISLNK(status.st_mode) && !is_descriptor(path) && link_name(path, name);
}
