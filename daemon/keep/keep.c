#include "daemon/keep/keep.h"

#include "daemon/base/log.h"
#include "daemon/base/memory_file.h"
#include "daemon/keep/keep_parts.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

/* --- what the store has of one model --- */

static void kept_remove(const struct kept *kept, enum store_role role, uint32_t number)
{
    const struct store_name name = {kept->key, role, number};
    store_remove(&name);
}

static int kept_add(const struct kept *kept, enum store_role role, uint32_t number, int fd)
{
    const struct store_name name = {kept->key, role, number};
    return store_add(&name, fd);
}

/* The description goes first: without it nobody takes the rest for a model. */
void kept_drop(struct keep *keep, struct kept *kept)
{
    if (kept->sequence > 0)
        kept_remove(kept, STORE_DESCRIPTION, kept->sequence);
    kept_remove(kept, STORE_ARENA, 0);
    for (size_t i = 0; i < kept->n_parts; i++)
        kept_remove(kept, STORE_HEADER, (uint32_t)i);
    for (size_t i = 0; i < kept->n_files; i++)
        kept_remove(kept, STORE_FILE, kept->files[i].number);
    TAILQ_REMOVE(&keep->list, kept, link);
    free(kept->files);
    free(kept);
}

static struct kept *kept_new(const struct model *model)
{
    struct kept *kept = calloc(1, sizeof(*kept));
    if (!kept)
        return NULL;
    kept->model = model->id;
    if (getrandom(&kept->key, sizeof(kept->key), GRND_NONBLOCK) == (ssize_t)sizeof(kept->key))
        return kept;
    free(kept);
    return NULL;
}

static bool same_file(const struct identity *a, const struct identity *b)
{
    return a->dev == b->dev && a->ino == b->ino;
}

/* The descriptors of the model's files, stored unless they are there. *ret: as many as the source has; the caller frees
 * them. */
static int store_files(struct kept *kept, const struct source *source, struct description_file **ret)
{
    struct description_file *files = calloc(source->n_files ? source->n_files : 1, sizeof(*files));
    int r = files ? 0 : -ENOMEM;
    for (size_t i = 0; i < source->n_files && r == 0; i++) {
        const struct identity *identity = &source->files[i].identity;
        size_t known = 0;
        while (known < kept->n_files && !same_file(&kept->files[known].identity, identity))
            known++;
        files[i].identity = *identity;
        files[i].number = known < kept->n_files ? kept->files[known].number : kept->next_number++;
        if (known == kept->n_files)
            r = kept_add(kept, STORE_FILE, files[i].number, source->files[i].fd);
    }
    if (r < 0) {
        free(files);
        return r;
    }
    *ret = files;
    return 0;
}

/* Removes the descriptors of files that the model does not have any more, and notes those that it has. */
static void change_files(struct kept *kept, struct description_file *files, size_t n)
{
    for (size_t i = 0; i < kept->n_files; i++) {
        bool stays = false;
        for (size_t j = 0; j < n; j++)
            stays |= files[j].number == kept->files[i].number;
        if (!stays)
            kept_remove(kept, STORE_FILE, kept->files[i].number);
    }
    free(kept->files);
    kept->files = files;
    kept->n_files = n;
}

/* The header of the first file is published already; those of others are written to files in memory of their own. */
static int store_header(struct kept *kept, const struct model *model)
{
    int r = kept_add(kept, STORE_HEADER, 0, model->published.header_fd);
    kept->n_parts = 1;
    for (const struct gguf *part = model->header->next; part && r == 0; part = part->next) {
        int fd = memory_file_new("rocmforge-header");
        r = fd < 0 ? fd : gguf_header_write(part, fd);
        if (r == 0)
            r = memory_file_seal(fd);
        if (r == 0)
            r = kept_add(kept, STORE_HEADER, (uint32_t)kept->n_parts++, fd);
        if (fd >= 0)
            close(fd);
    }
    return r;
}

/* Stores a description of the model as it is, and removes the one before. */
static int describe(struct kept *kept, const struct model *model)
{
    struct description_file *files = NULL;
    const size_t n = model->source->n_files;
    int r = store_files(kept, model->source, &files);
    if (r < 0)
        return r;
    uint32_t numbers[SOURCE_FILES_MAX];
    for (size_t i = 0; i < n; i++)
        numbers[i] = files[i].number;
    const int fd = description_write(model, numbers);
    r = fd < 0 ? fd : kept_add(kept, STORE_DESCRIPTION, kept->sequence + 1, fd);
    if (fd >= 0)
        close(fd);
    if (r < 0) {
        free(files);
        return r;
    }
    if (kept->sequence > 0)
        kept_remove(kept, STORE_DESCRIPTION, kept->sequence);
    kept->sequence++;
    change_files(kept, files, n);
    return 0;
}

/* --- keeping the store up to date --- */

static uint64_t mix(uint64_t print, const void *bytes, size_t size)
{
    return XXH3_64bits_withSeed(bytes, size, print);
}

uint64_t kept_print(const struct model *model)
{
    const struct {
        int64_t ttl;
        uint64_t n_guests, access, flags;
    } fixed = {model->ttl, model->n_guests, (uint64_t)model->access, model->pinned + 2u * model->changed};
    uint64_t print = mix(1, &fixed, sizeof(fixed));
    const struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        print = mix(print, &name->since, sizeof(name->since));
        print = mix(print, &name->uid, sizeof(name->uid));
        print = mix(print, name->text, strlen(name->text));
    }
    for (size_t i = 0; i < model->source->n_files; i++)
        print = mix(print, &model->source->files[i].identity, sizeof(struct identity));
    const struct access_facts *facts = model->facts;
    for (size_t i = 0; facts && i < facts->n_files + facts->n_folders; i++) {
        const struct access_entry *entry = &facts->entries[i];
        const uint64_t numbers[] = {entry->owner, entry->group, entry->mode, entry->acl, facts->placed};
        print = mix(print, numbers, sizeof(numbers));
    }
    return print ? print : 1;
}

static bool to_keep(const struct model *model)
{
    return model->state == MODEL_RESIDENT && model->export.fd >= 0 && model->n_names > 0 && !model->device->failed;
}

/* Brings the store up to date with the model. If that fails, it is tried again when the model changes. */
static void update(struct kept *kept, const struct model *model)
{
    const uint64_t print = kept_print(model);
    if (kept->print == print)
        return;
    int r = 0;
    if (kept->n_parts == 0) {
        r = kept_add(kept, STORE_ARENA, 0, model->export.fd);
        if (r == 0)
            r = store_header(kept, model);
    }
    if (r == 0)
        r = describe(kept, model);
    if (r < 0)
        log_client(LOG_LEVEL_WARNING, "model=%s id=%" PRIu64 " would not outlive the daemon as it is now: %s",
                   model->name, model->id, strerror(-r));
    kept->print = print;
}

static void keep_sync(struct keep *keep)
{
    struct kept *kept = TAILQ_FIRST(&keep->list);
    const struct model *model;
    TAILQ_FOREACH(model, &keep->residency->registry->models, link)
    {
        while (kept && kept->model < model->id) {
            struct kept *next = TAILQ_NEXT(kept, link);
            kept_drop(keep, kept);
            kept = next;
        }
        struct kept *own = kept && kept->model == model->id ? kept : NULL;
        if (own)
            kept = TAILQ_NEXT(own, link);
        if (!to_keep(model)) {
            if (own)
                kept_drop(keep, own);
            continue;
        }
        if (!own) {
            own = kept_new(model);
            if (!own)
                continue;
            if (kept)
                TAILQ_INSERT_BEFORE(kept, own, link);
            else
                TAILQ_INSERT_TAIL(&keep->list, own, link);
        }
        update(own, model);
    }
    while (kept) {
        struct kept *next = TAILQ_NEXT(kept, link);
        kept_drop(keep, kept);
        kept = next;
    }
}

/* A model is about to be unloaded. */
static bool leaves(void *keeper, const struct model *model)
{
    struct keep *keep = keeper;
    struct kept *kept;
    TAILQ_FOREACH(kept, &keep->list, link)
    {
        if (kept->model != model->id || keep->stopped)
            continue;
        kept_drop(keep, kept);
        return true;
    }
    return false;
}

/* worker. Only then the memory is free for others. */
static void left(void *keeper)
{
    (void)keeper;
    store_wait();
}

static void prepared(uv_prepare_t *prepare)
{
    struct keep *keep = prepare->data;
    if (!keep->stopped)
        keep_sync(keep);
}

/* --- the time of grace --- */

/* Held models cannot be gone: the registry has them all. idle: what nobody claimed is idle from now on. */
static void let_go(struct keep *keep, bool idle)
{
    while (keep->n_held > 0) {
        struct model *model = registry_find_id(keep->residency->registry, keep->held[--keep->n_held]);
        if (!model)
            continue;
        model_unhold(model);
        if (idle && !model_in_use(model))
            model->idle_since = uv_hrtime();
        if (idle)
            residency_idle(keep->residency, model);
    }
}

static void grace_ends(uv_timer_t *timer)
{
    let_go(timer->data, true);
}

void keep_hold(struct keep *keep)
{
    if (!TAILQ_EMPTY(&keep->list))
        uv_timer_start(&keep->timer, grace_ends, keep->grace_ms, 0);
}

int keep_new(struct residency *residency, unsigned grace, struct keep **ret)
{
    struct keep *keep = calloc(1, sizeof(*keep));
    if (!keep)
        return -ENOMEM;
    keep->residency = residency;
    keep->grace_ms = (uint64_t)grace * 1000;
    keep->closing = 2;
    TAILQ_INIT(&keep->list);
    keep->prepare.data = keep->timer.data = keep;
    /* These two cannot fail. */
    (void)uv_prepare_init(residency->core->loop, &keep->prepare);
    (void)uv_timer_init(residency->core->loop, &keep->timer);
    residency->leaves = leaves;
    residency->left = left;
    residency->keeper = keep;
    if (store_there())
        (void)uv_prepare_start(&keep->prepare, prepared);
    *ret = keep;
    return 0;
}

/* --- the end --- */

void keep_stop(struct keep *keep)
{
    if (keep->stopped)
        return;
    if (store_there())
        keep_sync(keep);
    keep->stopped = true;
    uv_prepare_stop(&keep->prepare);
    uv_timer_stop(&keep->timer);
    let_go(keep, false);
}

static void closed(uv_handle_t *handle)
{
    struct keep *keep = handle->data;
    if (--keep->closing > 0)
        return;
    struct kept *kept;
    while ((kept = TAILQ_FIRST(&keep->list))) {
        TAILQ_REMOVE(&keep->list, kept, link);
        free(kept->files);
        free(kept);
    }
    free(keep->held);
    awaited_close(&keep->awaited);
    free(keep);
}

void keep_close(struct keep *keep)
{
    if (!keep)
        return;
    uv_close((uv_handle_t *)&keep->prepare, closed);
    uv_close((uv_handle_t *)&keep->timer, closed);
}
