#include "daemon/keep/entries.h"

#include "daemon/base/log.h"

#include <stdlib.h>
#include <unistd.h>

static int entry_compare(const void *a, const void *b)
{
    const struct store_name *x = &((const struct store_entry *)a)->name, *y = &((const struct store_entry *)b)->name;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    if (x->role != y->role)
        return x->role < y->role ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static int model_compare(const void *a, const void *b)
{
    const struct model_entries *x = a, *y = b;
    return x->description.id < y->description.id ? -1 : x->description.id > y->description.id;
}

void entries_close(struct store_entry *entries, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (entries[i].fd >= 0)
            close(entries[i].fd);
        entries[i].fd = -1;
    }
}

void entries_drop(struct model_entries *of_model, const char *name, const char *why)
{
    log_write_fields(LOG_LEVEL_WARNING, &(const struct log_fields){.id = MESSAGE_MODEL_DROPPED, .model = name},
                     "model=%s was kept, but is not resident again: %s", name, why);
    for (size_t i = 0; i < of_model->n; i++)
        store_remove(&of_model->entries[i].name);
    entries_close(of_model->entries, of_model->n);
}

/* Reads the last description. False, after the entries were dropped, if there is none that is valid. */
static bool read_latest(struct model_entries *of_model)
{
    for (size_t i = 0; i < of_model->n; i++)
        if (of_model->entries[i].name.role == STORE_DESCRIPTION)
            of_model->latest = &of_model->entries[i];
    const char *why = "its description was not kept";
    if (of_model->latest && description_read(of_model->latest->fd, &of_model->description, &why) == 0)
        return true;
    entries_drop(of_model, "?", why);
    return false;
}

size_t entries_by_model(struct store_entry *entries, size_t n, struct model_entries **ret)
{
    struct model_entries *models = calloc(n ? n : 1, sizeof(*models));
    size_t n_models = 0;
    *ret = models;
    qsort(entries, n, sizeof(*entries), entry_compare);
    for (size_t i = 0, end; models && i < n; i = end) {
        for (end = i + 1; end < n && entries[end].name.key == entries[i].name.key;)
            end++;
        models[n_models] = (struct model_entries){.entries = &entries[i], .n = end - i};
        if (read_latest(&models[n_models]))
            n_models++;
    }
    if (n_models > 0)
        qsort(models, n_models, sizeof(*models), model_compare);
    return n_models;
}

int entries_take(struct model_entries *of_model, enum store_role role, uint32_t number)
{
    for (size_t i = 0; i < of_model->n; i++) {
        struct store_entry *entry = &of_model->entries[i];
        if (entry->name.role != role || entry->name.number != number)
            continue;
        const int fd = entry->fd;
        entry->fd = -1;
        return fd;
    }
    return -1;
}
