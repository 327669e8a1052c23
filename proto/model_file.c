#include "proto/model_file.h"

#include "proto/frame.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char extension[] = ".gguf";
static const char first[] = "-00001-of-", any[] = "-00001-of-00003.gguf";

static bool name_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("._-:@+", c));
}

int model_name_check(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > MODEL_NAME_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (!name_character(name[i]))
            return -EINVAL;
    return 0;
}

void model_name_derive(const char *path, char name[MODEL_NAME_MAX + 1])
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    const char *base = slash ? slash + 1 : path ? path : "";
    size_t n = strlen(base);
    if (n > strlen(extension) && strcasecmp(base + n - strlen(extension), extension) == 0)
        n -= strlen(extension);
    if (n > MODEL_NAME_MAX)
        n = MODEL_NAME_MAX;
    for (size_t i = 0; i < n; i++)
        name[i] = name_character(base[i]) ? base[i] : '_';
    name[n] = '\0';
    if (n == 0)
        strcpy(name, "model");
}

unsigned shard_count(const char *path)
{
    size_t length = strlen(path);
    if (length < strlen(any))
        return 1;
    const char *tail = path + length - strlen(any);
    const char *digits = tail + strlen(first);
    if (strncmp(tail, first, strlen(first)) != 0 || strcmp(digits + 5, extension) != 0)
        return 1;
    unsigned n = 0;
    for (int i = 0; i < 5; i++) {
        if (digits[i] < '0' || digits[i] > '9')
            return 1;
        n = 10 * n + (unsigned)(digits[i] - '0');
    }
    return n > 0 && n <= FRAME_FDS_MAX ? n : 1;
}

int shard_path(const char *path, unsigned index, unsigned n, char *dst, size_t size)
{
    int length = n == 1 ? snprintf(dst, size, "%s", path)
                        : snprintf(dst, size, "%.*s-%05u-of-%05u%s", (int)(strlen(path) - strlen(any)), path, index + 1,
                                   n, extension);
    return length >= 0 && (size_t)length < size ? 0 : -ENAMETOOLONG;
}
