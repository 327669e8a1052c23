#include "daemon/api/preload.h"

#include "daemon/base/log.h"
#include "daemon/base/worker.h"
#include "daemon/load/load.h"
#include "daemon/model/layout.h"
#include "daemon/model/plan.h"
#include "proto/folder.h"
#include "proto/model_file.h"
#include "proto/shards.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum verdict { MODEL, LATER_FILE, OF_INDEX, NO_MODEL, NO_FILE };

struct preload {
    struct loads *loads;
    const char *folder;
    const struct layout *layout;
    struct work work;
    struct dirent **entries;
    enum verdict *verdicts; /* one for each entry; NULL: there was no memory, so all are tried */
    int n_entries;          /* or a negative errno */
    int next;
    char *whole;     /* the real path of the folder, if it is a model itself and was not loaded yet; else NULL */
    char *path;      /* of the model that is being loaded */
    unsigned failed; /* models that could not be loaded since the last preload_look() began. A folder that cannot be
                        read counts as one */
    struct peer *self;
    bool looking;
    bool again; /* preload_look() was called while this was under way */
};

static void preload_next(struct preload *preload);

int preload_new(struct loads *loads, const char *folder, const char *layout, struct preload **ret)
{
    const char *parameter;
    struct preload *preload = calloc(1, sizeof(*preload));
    if (!preload)
        return -ENOMEM;
    int r = layout_new(layout, NULL, NULL, &preload->layout, &parameter);
    if (r == 0)
        r = peer_self(&preload->self);
    if (r < 0) {
        layout_unref(preload->layout);
        free(preload);
        return r;
    }
    preload->loads = loads;
    preload->folder = folder;
    *ret = preload;
    return 0;
}

static void preload_clear(struct preload *preload)
{
    for (int i = 0; i < preload->n_entries; i++)
        free(preload->entries[i]);
    free(preload->entries);
    free(preload->verdicts);
    preload->entries = NULL;
    preload->verdicts = NULL;
    preload->n_entries = preload->next = 0;
    free(preload->whole);
    preload->whole = NULL;
    free(preload->path);
    preload->path = NULL;
}

void preload_free(struct preload *preload)
{
    if (!preload)
        return;
    preload_clear(preload);
    peer_unref(preload->self);
    layout_unref(preload->layout);
    free(preload);
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Whether the folder is a model: FOLDER_INDEX names its files. That file, and other files, may also be safetensors. */
static bool has_index(const char *folder)
{
    char *path;
    if (asprintf(&path, "%s/" FOLDER_INDEX, folder) < 0)
        return false;
    const bool has = access(path, F_OK) == 0;
    free(path);
    return has;
}

static bool has_file(const char *folder)
{
    char *path;
    if (asprintf(&path, "%s/" FOLDER_FILE, folder) < 0)
        return false;
    const bool has = access(path, F_OK) == 0;
    free(path);
    return has;
}

static bool is_safetensors(const char *name)
{
    static const char ending[] = ".safetensors";
    const size_t n = strlen(name), length = sizeof(ending) - 1;
    return n > length && strcmp(name + n - length, ending) == 0;
}

/* Decides what an open file is. index: its folder has one. */
static enum verdict judge(int fd, const char *path, bool index)
{
    struct shard_place place = {0};
    if (shard_peek(fd, &place) < 0)
        return MODEL;
    if (place.gguf)
        return place.split && place.number > 0 ? LATER_FILE : MODEL;
    if (!is_safetensors(path))
        return NO_MODEL;
    return index ? OF_INDEX : shard_follows(path) ? LATER_FILE : MODEL;
}

/* Decides what an entry of the folder is. If it cannot be opened, it counts as a model: the load tells the error. */
static enum verdict look_at(const char *folder, const char *name, bool index)
{
    char *path;
    struct stat status;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return MODEL;
    const bool known = stat(path, &status) == 0, regular = known && S_ISREG(status.st_mode);
    const int fd = regular ? open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK) : -1;
    const bool model = known && S_ISDIR(status.st_mode) && (has_index(path) || has_file(path));
    enum verdict verdict = known && !regular && !model ? NO_FILE : MODEL;
    if (fd >= 0) {
        verdict = judge(fd, path, index);
        close(fd);
    }
    free(path);
    return verdict;
}

static void preload_scan(struct work *work)
{
    struct preload *preload = work->data;
    worker_step_back();
    worker_file_begin();
    int n = scandir(preload->folder, &preload->entries, is_visible, by_name);
    preload->n_entries = n < 0 ? -errno : n;
    preload->verdicts = n > 0 ? calloc((size_t)n, sizeof(*preload->verdicts)) : NULL;
    const bool index = n > 0 && has_index(preload->folder);
    preload->whole = index ? realpath(preload->folder, NULL) : NULL;
    for (int i = 0; i < n && preload->verdicts; i++)
        preload->verdicts[i] = look_at(preload->folder, preload->entries[i]->d_name, index);
    worker_file_end();
}

/* True if the entry is to be loaded. If not, logs why: it is no model, or not the first file of a split model. */
static bool is_model(const struct preload *preload, int entry)
{
    const enum verdict verdict = preload->verdicts ? preload->verdicts[entry] : MODEL;
    const char *name = preload->entries[entry]->d_name;
    if (verdict == LATER_FILE)
        log_info("preload: %s/%s is a later file of a split model: it is loaded together with the first file",
                 preload->folder, name);
    else if (verdict == OF_INDEX)
        log_info("preload: %s/%s is loaded if the folder's index names it, with all that it names", preload->folder,
                 name);
    else if (verdict != MODEL)
        log_info("preload: %s/%s skipped: it is no %s", preload->folder, name,
                 verdict == NO_FILE ? "regular file, and no folder of safetensors files" : "GGUF or safetensors file");
    return verdict == MODEL;
}

static void preload_scanned(struct work *work)
{
    struct preload *preload = work->data;
    if (preload->n_entries < 0) {
        log_error("preload: %s: %s", preload->folder, strerror(-preload->n_entries));
        preload->failed++;
        preload->n_entries = 0;
        core_changed(preload->loads->core);
    }
    preload_next(preload);
    core_job_end(preload->loads->core);
}

static void preloaded(void *context, struct model *model, const char *why)
{
    struct preload *preload = context;
    if (!model) {
        preload->failed++;
        log_warning("preload: %s skipped: %s", preload->path, why);
    }
    preload_next(preload);
}

unsigned preload_failed(const struct preload *preload)
{
    return preload ? preload->failed : 0;
}

/* Sets the path of what is to be loaded next, and the model's name: after the link's own name, not its target's; of the
 * folder itself, after the folder, or, in Hugging Face's cache, after the model. -ENOMEM. */
static int take_next(struct preload *preload, char name[MODEL_NAME_MAX + 1])
{
    char *whole = preload->whole, *path;
    const char *entry = whole ? FOLDER_FILE : preload->entries[preload->next]->d_name;
    preload->next += !whole;
    preload->whole = NULL;
    if (asprintf(&path, "%s/%s", whole ? whole : preload->folder, entry) < 0) {
        free(whole);
        return -ENOMEM;
    }
    model_name_derive(path, name);
    preload->path = whole ? whole : path;
    if (whole)
        free(path);
    return 0;
}

static void preload_next(struct preload *preload)
{
    free(preload->path);
    preload->path = NULL;
    const bool stopping = preload->loads->core->stopping;
    while (!stopping && !preload->whole && preload->next < preload->n_entries && !is_model(preload, preload->next))
        preload->next++;
    if (stopping || (!preload->whole && preload->next == preload->n_entries)) {
        preload_clear(preload);
        preload->looking = false;
        if (preload->again && !stopping)
            preload_look(preload);
        return;
    }
    char model_name[MODEL_NAME_MAX + 1];
    if (take_next(preload, model_name) < 0) {
        log_error("preload: no memory");
        preload->next = preload->n_entries;
        preload_next(preload);
        return;
    }
    struct device_set among;
    (void)devices_named(preload->loads->devices, "auto", &among); /* never empty: the host is always there */
    load_begin(preload->loads,
               &(struct load_request){
                   .path = preload->path,
                   .name = model_name,
                   .forms = forms_plain(FORM_AUTO),
                   .layout = preload->layout,
                   .among = among,
                   .peer = preload->self,
                   .uid = preload->self->uid,
                   .trusted = true,
                   .replace = REPLACE_FILE,
                   .pin = true,
                   .ttl = -1,
                   .done = preloaded,
                   .context = preload,
               },
               NULL);
}

void preload_look(struct preload *preload)
{
    preload->again = preload->looking;
    if (preload->looking)
        return;
    preload->looking = true;
    preload->failed = 0;
    core_job_begin(preload->loads->core);
    const struct work_reads reads = {.uid = preload->self->uid};
    worker_queue_reading(preload->loads->core->queue, &preload->work, &reads, preload, preload_scan, preload_scanned);
}
