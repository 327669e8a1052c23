#include "daemon/keep/stored.h"

#include "daemon/base/log.h"
#include "daemon/base/memory_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

static void take_out(const struct stored *stored, enum store_role role, uint32_t number)
{
    const struct store_name name = {stored->key, role, number};
    store_remove(&name);
}

static int put(const struct stored *stored, enum store_role role, uint32_t number, int fd)
{
    const struct store_name name = {stored->key, role, number};
    return store_add(&name, fd);
}

/* The descriptors of the model's files, stored unless they are there. *ret: as many as the source has; the caller frees
 * them. */
static int store_files(struct stored *stored, const struct source *source, struct description_file **ret)
{
    struct description_file *files = calloc(source->n_files ? source->n_files : 1, sizeof(*files));
    int r = files ? 0 : -ENOMEM;
    for (size_t i = 0; i < source->n_files && r == 0; i++) {
        const struct identity *identity = &source->files[i].identity;
        size_t known = 0;
        while (known < stored->n_files && !identity_same_file(&stored->files[known].identity, identity))
            known++;
        files[i].identity = *identity;
        files[i].number = known < stored->n_files ? stored->files[known].number : stored->next_number++;
        if (known == stored->n_files)
            r = put(stored, STORE_FILE, files[i].number, source->files[i].fd);
    }
    if (r < 0) {
        free(files);
        return r;
    }
    *ret = files;
    return 0;
}

/* Removes the descriptors of files that the model does not have any more, and notes those that it has. */
static void change_files(struct stored *stored, struct description_file *files, size_t n)
{
    for (size_t i = 0; i < stored->n_files; i++) {
        bool stays = false;
        for (size_t j = 0; j < n; j++)
            stays |= files[j].number == stored->files[i].number;
        if (!stays)
            take_out(stored, STORE_FILE, stored->files[i].number);
    }
    free(stored->files);
    stored->files = files;
    stored->n_files = n;
}

/* The header of the first file is published already; those of others are written to files in memory of their own. */
static int store_header(struct stored *stored, const struct model *model)
{
    int r = put(stored, STORE_HEADER, 0, model->published.header_fd);
    stored->n_headers = 1;
    for (const struct model_header *part = model->header->next; part && r == 0; part = part->next) {
        int fd = memory_file_new("rocmforge-header");
        r = fd < 0 ? fd : model_header_write(part, fd);
        if (r == 0)
            r = memory_file_seal(fd);
        if (r == 0)
            r = put(stored, STORE_HEADER, (uint32_t)stored->n_headers++, fd);
        if (fd >= 0)
            close(fd);
    }
    return r;
}

/* Stores a description of the model as it is, and removes the one before. */
static int describe(struct stored *stored, const struct model *model)
{
    struct description_file *files = NULL;
    const size_t n = model->source->n_files;
    int r = store_files(stored, model->source, &files);
    if (r < 0)
        return r;
    uint32_t numbers[SOURCE_FILES_MAX];
    for (size_t i = 0; i < n; i++)
        numbers[i] = files[i].number;
    const int fd = description_write(model, numbers);
    r = fd < 0 ? fd : put(stored, STORE_DESCRIPTION, stored->sequence + 1, fd);
    if (fd >= 0)
        close(fd);
    if (r < 0) {
        free(files);
        return r;
    }
    if (stored->sequence > 0)
        take_out(stored, STORE_DESCRIPTION, stored->sequence);
    stored->sequence++;
    change_files(stored, files, n);
    return 0;
}

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
    } fixed = {model->ttl, model->n_guests, (uint64_t)model->access, model->pinned + 2u * model->changed};
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

struct stored *stored_new(struct model *model)
{
    struct stored *stored = calloc(1, sizeof(*stored));
    if (!stored)
        return NULL;
    if (getrandom(&stored->key, sizeof(stored->key), GRND_NONBLOCK) != (ssize_t)sizeof(stored->key)) {
        free(stored);
        return NULL;
    }
    stored->model = model;
    model->stored = stored;
    return stored;
}

/* Whether a model that is in the store from before a restart needs what has this name. */
static bool needs(const struct stored *stored, const struct store_name *name)
{
    switch (name->role) {
    case STORE_ARENA:
        return true;
    case STORE_DESCRIPTION:
        return name->number == stored->sequence;
    case STORE_HEADER:
        return name->number < stored->n_headers;
    default:
        for (size_t i = 0; i < stored->n_files; i++)
            if (stored->files[i].number == name->number)
                return true;
        return false;
    }
}

struct stored *stored_again(struct model *model, const struct description *description,
                            const struct store_entry *latest, const struct store_entry *entries, size_t n)
{
    struct stored *stored = calloc(1, sizeof(*stored));
    struct description_file *files = calloc(description->n_files, sizeof(*files));
    if (!stored || !files) {
        free(stored);
        free(files);
        return NULL;
    }
    memcpy(files, description->files, description->n_files * sizeof(*files));
    *stored = (struct stored){
        .model = model,
        .key = latest->name.key,
        .print = print_of(model),
        .sequence = latest->name.number,
        .n_headers = description->n_headers,
        .n_files = description->n_files,
        .files = files,
    };
    model->stored = stored;
    for (size_t i = 0; i < n; i++) {
        const struct store_name *name = &entries[i].name;
        if (name->role == STORE_FILE && name->number >= stored->next_number)
            stored->next_number = name->number + 1;
        if (!needs(stored, name))
            store_remove(name);
    }
    return stored;
}

void stored_update(struct stored *stored)
{
    const struct model *model = stored->model;
    const uint64_t print = print_of(model);
    if (stored->print == print)
        return;
    int r = 0;
    if (stored->n_headers == 0) {
        r = put(stored, STORE_ARENA, 0, model->export.fd);
        if (r == 0)
            r = store_header(stored, model);
    }
    if (r == 0)
        r = describe(stored, model);
    if (r < 0)
        log_client(LOG_LEVEL_WARNING, "model=%s id=%" PRIu64 " would not outlive the daemon as it is now: %s",
                   model->name, model->id, strerror(-r));
    stored->print = print;
}

/* The description goes first: without it nobody takes the rest for a model. */
void stored_remove(struct stored *stored)
{
    if (stored->sequence > 0)
        take_out(stored, STORE_DESCRIPTION, stored->sequence);
    take_out(stored, STORE_ARENA, 0);
    for (size_t i = 0; i < stored->n_headers; i++)
        take_out(stored, STORE_HEADER, (uint32_t)i);
    for (size_t i = 0; i < stored->n_files; i++)
        take_out(stored, STORE_FILE, stored->files[i].number);
    stored_free(stored);
}

void stored_free(struct stored *stored)
{
    stored->model->stored = NULL;
    free(stored->files);
    free(stored);
}
