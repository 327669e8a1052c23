/* Models are taken back from the store: at the start, and once more when the drivers of GPUs have started. */
#include "daemon/base/log.h"
#include "daemon/keep/keep.h"
#include "daemon/keep/keep_parts.h"
#include "daemon/keep/resume.h"
#include "daemon/session/events.h"
#include "proto/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static void tell_again(const struct model *model)
{
    char size[BYTES_TEXT_SIZE];
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

static void tell_dropped(const char *name, const char *why)
{
    log_write_fields(LOG_LEVEL_WARNING, &(const struct log_fields){.id = MESSAGE_MODEL_DROPPED, .model = name},
                     "model=%s was kept, but is not resident again: %s", name, why);
}

/* Gives up what the store has of a model. */
static void group_drop(struct group *group, const char *name, const char *why)
{
    tell_dropped(name, why);
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
        .print = kept_print(model),
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

static void group_resume(struct keep *keep, struct group *group, bool awaits)
{
    const struct description *description = &group->description;
    struct resume *resume = malloc(sizeof(*resume));
    struct model *model = NULL;
    char why[RESUME_WHY_SIZE] = "out of memory";
    int r = resume ? 0 : -ENOMEM;
    if (r == 0) {
        resume->registry = keep->residency->registry;
        resume->devices = keep->residency->devices;
        resume->awaited = awaits ? &keep->awaited : NULL;
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
    if (!device_is_awaited(model->device))
        tell_again(model);
}

void keep_resume(struct keep *keep, struct store_entry *entries, size_t n, bool awaits)
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
        group_resume(keep, &groups[i], awaits);
        description_clear(&groups[i].description);
    }
    free(groups);
    for (size_t i = 0; i < n; i++) { /* what nobody took */
        if (entries[i].fd >= 0)
            close(entries[i].fd);
        entries[i].fd = -1;
    }
    if (!awaits)
        keep_hold(keep);
}

/* --- when the drivers have started --- */

static void unhold(struct keep *keep, struct model *model)
{
    for (size_t i = 0; i < keep->n_held; i++) {
        if (keep->held[i] != model->id)
            continue;
        keep->held[i] = keep->held[--keep->n_held];
        model_unhold(model);
        return;
    }
}

/* The model goes. Who has attached meanwhile is told by draining; others may have its names from now on. */
static void give_up(struct keep *keep, struct model *model, const char *why)
{
    tell_dropped(model->name, why);
    struct kept *kept;
    TAILQ_FOREACH(kept, &keep->list, link)
    {
        if (kept->model == model->id)
            break;
    }
    if (kept)
        kept_drop(keep, kept);
    unhold(keep, model);
    residency_drain(keep->residency, model, 0);
    if (model->state != MODEL_DRAINING) /* nobody has: it is being unloaded */
        return;
    model_lose_name(model);
    events_emit(keep->residency->events, "renamed", model, NULL);
}

void keep_settle(struct keep *keep)
{
    struct model *next;
    for (struct model *model = TAILQ_FIRST(&keep->residency->registry->models); model; model = next) {
        next = TAILQ_NEXT(model, link); /* a model that is given up is removed later, when a worker has freed it */
        char why[RESUME_WHY_SIZE];
        if (!device_is_awaited(model->device))
            continue;
        if (resume_settle(model, keep->residency->devices, why) == 0)
            tell_again(model);
        else
            give_up(keep, model, why);
    }
    keep_hold(keep);
}
