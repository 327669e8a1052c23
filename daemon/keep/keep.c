#include "daemon/keep/keep.h"

#include "daemon/base/log.h"
#include "daemon/base/memory_file.h"
#include "daemon/keep/resume.h"
#include "proto/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

/* A model that the store has. */
struct kept {
    TAILQ_ENTRY(kept) link;
    uint64_t model; /* its id */
    uint64_t key;
    uint64_t print;    /* of what its description says and may change; 0: it was not described yet */
    uint32_t sequence; /* of its description */
    uint32_t next_number;
    size_t n_parts;
    size_t n_files;
    struct description_file *files;
};

struct keep {
    struct residency *residency;
    TAILQ_HEAD(, kept) list; /* by the models' ids, as the registry's */
    uv_prepare_t prepare;
    uv_timer_t timer;
    uint64_t grace_ms;
    uint64_t *held; /* ids of models that are held for the time of grace */
    size_t n_held;
    unsigned closing; /* handles */
    bool stopped;
};

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
static void kept_drop(struct keep *keep, struct kept *kept)
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

/* A number that changes with what may change in the model's description. */
static uint64_t print_of(const struct model *model)
{
    const struct {
        int64_t ttl;
        uint64_t n_guests, access, flags;
    } fixed = {model->ttl, model->n_guests, (uint64_t)model->access,
               model->pinned + 2u * model->changed + 4u * model->deleted};
    uint64_t print = mix(1, &fixed, sizeof(fixed));
    const struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        print = mix(print, &name->since, sizeof(name->since));
        print = mix(print, &name->uid, sizeof(name->uid));
        print = mix(print, name->text, strlen(name->text));
    }
    if (model->origin)
        print = mix(print, model->origin, strlen(model->origin));
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
    const uint64_t print = print_of(model);
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

/* --- taking back --- */

/* The entries of one model. */
struct group {
    struct store_entry *entries;
    size_t n;
    struct store_entry *latest; /* its last description; NULL: it has none */
    struct description description;
};

static int entry_compare(const void *a, const void *b)
{
    const struct store_name *x = &((const struct store_entry *)a)->name, *y = &((const struct store_entry *)b)->name;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    if (x->role != y->role)
        return x->role < y->role ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static int group_compare(const void *a, const void *b)
{
    const struct group *x = a, *y = b;
    return x->description.id < y->description.id ? -1 : x->description.id > y->description.id;
}

/* Gives up what the store has of a model. */
static void group_drop(struct group *group, const char *name, const char *why)
{
    log_write_fields(LOG_LEVEL_WARNING, &(const struct log_fields){.id = MESSAGE_MODEL_DROPPED, .model = name},
                     "model=%s was kept, but is not resident again: %s", name, why);
    for (size_t i = 0; i < group->n; i++) {
        store_remove(&group->entries[i].name);
        if (group->entries[i].fd >= 0)
            close(group->entries[i].fd);
        group->entries[i].fd = -1;
    }
}

/* Reads the last description. False, after the group was dropped, if there is none that is valid. */
static bool group_read(struct group *group)
{
    for (size_t i = 0; i < group->n; i++)
        if (group->entries[i].name.role == STORE_DESCRIPTION)
            group->latest = &group->entries[i];
    const char *why = "its description was not kept";
    if (group->latest && description_read(group->latest->fd, &group->description, &why) == 0)
        return true;
    group_drop(group, "?", why);
    return false;
}

static int group_take(struct group *group, enum store_role role, uint32_t number)
{
    for (size_t i = 0; i < group->n; i++) {
        struct store_entry *entry = &group->entries[i];
        if (entry->name.role != role || entry->name.number != number)
            continue;
        const int fd = entry->fd;
        entry->fd = -1;
        return fd;
    }
    return -1;
}

/* Notes that the store has this model, and removes from the store what the model does not need. */
static int group_note(struct keep *keep, struct group *group, struct model *model)
{
    const struct description *description = &group->description;
    struct kept *kept = calloc(1, sizeof(*kept));
    struct description_file *files = calloc(description->n_files, sizeof(*files));
    if (!kept || !files) {
        free(kept);
        free(files);
        return -ENOMEM;
    }
    memcpy(files, description->files, description->n_files * sizeof(*files));
    *kept = (struct kept){
        .model = model->id,
        .key = group->latest->name.key,
        .print = print_of(model),
        .sequence = group->latest->name.number,
        .n_parts = description->n_parts,
        .n_files = description->n_files,
        .files = files,
    };
    for (size_t i = 0; i < group->n; i++) {
        const struct store_name *name = &group->entries[i].name;
        bool used =
            name->role == STORE_ARENA || (name->role == STORE_DESCRIPTION && &group->entries[i] == group->latest);
        used = used || (name->role == STORE_HEADER && name->number < kept->n_parts);
        for (size_t j = 0; j < kept->n_files; j++)
            used = used || (name->role == STORE_FILE && name->number == files[j].number);
        if (name->role == STORE_FILE && name->number >= kept->next_number)
            kept->next_number = name->number + 1;
        if (!used)
            store_remove(name);
    }
    keep->held[keep->n_held++] = model->id;
    model_hold(model);
    TAILQ_INSERT_TAIL(&keep->list, kept, link);
    return 0;
}

static void group_resume(struct keep *keep, struct group *group)
{
    const struct description *description = &group->description;
    struct resume *resume = malloc(sizeof(*resume));
    struct model *model = NULL;
    char why[RESUME_WHY_SIZE] = "out of memory", size[BYTES_TEXT_SIZE];
    int r = resume ? 0 : -ENOMEM;
    if (r == 0) {
        resume->registry = keep->residency->registry;
        resume->devices = keep->residency->devices;
        resume->description = description;
        resume->arena_fd = group_take(group, STORE_ARENA, 0);
        for (size_t i = 0; i < description->n_parts; i++)
            resume->header_fds[i] = group_take(group, STORE_HEADER, (uint32_t)i);
        for (size_t i = 0; i < description->n_files; i++)
            resume->file_fds[i] = group_take(group, STORE_FILE, description->files[i].number);
        r = resume_model(resume, &model, why);
    }
    free(resume);
    if (r < 0 || group_note(keep, group, model) < 0) {
        if (r < 0)
            group_drop(group, description->names[0].text, why);
        return;
    }
    const struct log_fields fields = {
        .id = MESSAGE_MODEL_AGAIN,
        .model = model->name,
        .device = model->device->id,
        .has_bytes = true,
        .bytes = model->plan->arena_bytes,
    };
    log_write_fields(LOG_LEVEL_NOTICE, &fields,
                     "model=%s id=%" PRIu64 " resident again on %s: %s, as it was before the restart", model->name,
                     model->id, model->device->id, bytes_text(size, (double)model->plan->arena_bytes, ""));
}

void keep_resume(struct keep *keep, struct store_entry *entries, size_t n)
{
    struct group *groups = calloc(n ? n : 1, sizeof(*groups));
    size_t n_groups = 0;
    qsort(entries, n, sizeof(*entries), entry_compare);
    for (size_t i = 0, end; groups && i < n; i = end) {
        for (end = i + 1; end < n && entries[end].name.key == entries[i].name.key;)
            end++;
        groups[n_groups] = (struct group){.entries = &entries[i], .n = end - i};
        if (group_read(&groups[n_groups]))
            n_groups++;
    }
    keep->held = calloc(n_groups ? n_groups : 1, sizeof(*keep->held));
    for (size_t i = 0; i < n_groups && !keep->held; i++) {
        group_drop(&groups[i], groups[i].description.names[0].text, "out of memory");
        description_clear(&groups[i].description);
    }
    if (!keep->held)
        n_groups = 0;
    if (n_groups > 0)
        qsort(groups, n_groups, sizeof(*groups), group_compare);
    for (size_t i = 0; i < n_groups; i++) {
        group_resume(keep, &groups[i]);
        description_clear(&groups[i].description);
    }
    free(groups);
    for (size_t i = 0; i < n; i++) { /* what nobody took */
        if (entries[i].fd >= 0)
            close(entries[i].fd);
        entries[i].fd = -1;
    }
    if (!TAILQ_EMPTY(&keep->list))
        uv_timer_start(&keep->timer, grace_ends, keep->grace_ms, 0);
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
    free(keep);
}

void keep_close(struct keep *keep)
{
    if (!keep)
        return;
    uv_close((uv_handle_t *)&keep->prepare, closed);
    uv_close((uv_handle_t *)&keep->timer, closed);
}
