/* Loading and unloading. */
#include "client/client.h"
#include "client/fields.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* A load under way. */
struct loading {
    rf_client *client;
    const rf_load_options *options;
    char name[RF_NAME_SIZE];
};

static int fail_reply(rf_client *client, const char *what)
{
    return client_break(client, -EPROTO, "the daemon's answer to Load is wrong: %s", what);
}

static int progress_reply(struct loading *loading, const cJSON *progress)
{
    const cJSON *left = field(progress, "left");
    struct rf_progress p = {.state = field_text(progress, "state"), .seconds_left = -1};
    if (!p.state || !field_integer(progress, "done", &p.done) || !field_integer(progress, "total", &p.total) ||
        !field_integer(progress, "rate", &p.rate) || (left && !cJSON_IsNumber(left)))
        return fail_reply(loading->client, "progress");
    if (left)
        p.seconds_left = left->valuedouble;
    if (!loading->options->progress)
        return 0;
    int r = loading->options->progress(loading->options->context, &p);
    return r == 0 ? 0 : client_fail(loading->client, r, "the caller ended the load");
}

static int load_reply(void *context, cJSON **parameters, bool continues, struct frame_message *message)
{
    struct loading *loading = context;
    (void)message;
    const cJSON *progress = field(*parameters, "progress");
    if (progress) {
        int r = progress_reply(loading, progress);
        if (r != 0 || continues)
            return r;
    }
    const char *name = field_text(field(*parameters, "model"), "name");
    if (!name || strlen(name) >= sizeof(loading->name))
        return fail_reply(loading->client, "the model's name");
    strcpy(loading->name, name);
    return 0;
}

/* --- the files --- */

struct files {
    int fds[FRAME_FDS_MAX];
    size_t n;
};

static void files_close(struct files *files)
{
    while (files->n > 0)
        close(files->fds[--files->n]);
}

static int files_add(rf_client *client, struct files *files, const char *path)
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

static int files_open(rf_client *client, struct files *files, const char *path)
{
    int prefix = 0;
    unsigned n = split_count(path, &prefix);
    if (n == 1)
        return files_add(client, files, path);
    for (unsigned i = 1; i <= n; i++) {
        char part[PATH_MAX + 32];
        snprintf(part, sizeof(part), "%.*s-%05u-of-%05u.gguf", prefix, path, i, n);
        int r = files_add(client, files, part);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The daemon names a model after the file that it was given. Where the path is a link, as in caches of downloads, that
 * file has a name that says nothing, and the link's is the one to take. Otherwise the name stays empty. */
static void name_of_link(const char *path, char name[static RF_NAME_SIZE])
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

/* --- the request --- */

static bool add_text(cJSON *object, const char *key, const char *text)
{
    return !text || cJSON_AddStringToObject(object, key, text);
}

/* The parameters as text, for cJSON_free(); NULL: no memory. */
static char *load_parameters(const rf_load_options *options, size_t n_fds)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *fds = cJSON_AddArrayToObject(object, "fds");
    bool ok = fds;
    for (size_t i = 0; i < n_fds; i++)
        ok = ok && cJSON_AddItemToArray(fds, cJSON_CreateNumber((double)i));
    ok = ok && add_text(object, "name", options->name) && add_text(object, "form", options->form) &&
         add_text(object, "device", options->device) && add_text(object, "dequant", options->dequant) &&
         cJSON_AddBoolToObject(object, "wait", !options->no_wait);
    char *text = ok ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    return text;
}

static int load(struct loading *loading, const char *path)
{
    struct files files = {.n = 0};
    int r = files_open(loading->client, &files, path);
    if (r < 0) {
        files_close(&files);
        return r;
    }
    char *parameters = load_parameters(loading->options, files.n);
    if (parameters)
        r = client_call(loading->client, &(struct call){
                                             .method = "Load",
                                             .parameters = parameters,
                                             .more = true,
                                             .fds = files.fds,
                                             .n_fds = files.n,
                                             .reply = load_reply,
                                             .context = loading,
                                         });
    else
        r = client_fail(loading->client, -ENOMEM, "no memory for a request");
    cJSON_free(parameters);
    files_close(&files);
    return r;
}

int rf_load(rf_client *client, const char *path, const rf_load_options *options, char *name)
{
    /* What an older caller does not know of stays 0. */
    rf_load_options all = {0};
    if (options)
        memcpy(&all, options, options->size < sizeof(all) ? options->size : sizeof(all));
    client_clear(client);
    if (options && options->size == 0)
        return client_fail(client, -EINVAL, "the size of the options is not set");
    char link[RF_NAME_SIZE];
    name_of_link(path, link);
    if (!all.name && link[0])
        all.name = link;
    struct loading loading = {.client = client, .options = &all};
    int r = load(&loading, path);
    if (r == 0 && name)
        strcpy(name, loading.name);
    return r;
}

int rf_unload(rf_client *client, const char *name)
{
    cJSON *object = cJSON_CreateObject();
    char *parameters = cJSON_AddStringToObject(object, "name", name) ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    int r = parameters ? client_call(client, &(struct call){.method = "Unload", .parameters = parameters})
                       : client_fail(client, -ENOMEM, "no memory for a request");
    cJSON_free(parameters);
    return r;
}
