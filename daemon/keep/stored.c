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

static bool has_file(const struct description_file *files, size_t n, uint32_t number)
{
    for (size_t i = 0; i < n; i++)
        if (files[i].number == number)
            return true;
    return false;
}

/* The files that the model has now, each with the number of its descriptor. */
struct files_now {
    struct description_file *files; /* the owner frees it */
    size_t n;
    size_t n_new;  /* that are not in the store yet */
    size_t n_gone; /* that are in the store, and the model does not have them any more */
};

static int find_files(const struct stored *stored, const struct source *source, struct files_now *ret)
{
    struct files_now now = {.n = source->n_files};
    now.files = calloc(now.n ? now.n : 1, sizeof(*now.files));
    if (!now.files)
        return -ENOMEM;
    for (size_t i = 0; i < now.n; i++) {
        const struct identity *identity = &source->files[i].identity;
        size_t known = 0;
        while (known < stored->n_files && !identity_same_file(&stored->files[known].identity, identity))
            known++;
        now.files[i].identity = *identity;
        now.files[i].number =
            known < stored->n_files ? stored->files[known].number : stored->next_number + (uint32_t)now.n_new++;
    }
    for (size_t i = 0; i < stored->n_files; i++)
        now.n_gone += !has_file(now.files, now.n, stored->files[i].number);
    *ret = now;
    return 0;
}

static int store_files(const struct stored *stored, const struct source *source, const struct files_now *now)
{
    int r = 0;
    for (size_t i = 0; i < now->n && r == 0; i++)
        if (!has_file(stored->files, stored->n_files, now->files[i].number))
            r = put(stored, STORE_FILE, now->files[i].number, source->files[i].fd);
    return r;
}

/* Removes the descriptors of files that are not among these. */
static void take_out_files(const struct stored *stored, const struct description_file *files, size_t n,
                           const struct description_file *but, size_t n_but)
{
    for (size_t i = 0; i < n; i++)
        if (!has_file(but, n_but, files[i].number))
            take_out(stored, STORE_FILE, files[i].number);
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

static size_t count_headers(const struct model *model)
{
    size_t n = 1;
    for (const struct model_header *part = model->header->next; part; part = part->next)
        n++;
    return n;
}

static int store_description(const struct stored *stored, const struct model *model, const struct files_now *now)
{
    uint32_t numbers[SOURCE_FILES_MAX];
    for (size_t i = 0; i < now->n; i++)
        numbers[i] = now->files[i].number;
    const int fd = description_write(model, numbers);
    const int r = fd < 0 ? fd : put(stored, STORE_DESCRIPTION, stored->sequence + 1, fd);
    if (fd >= 0)
        close(fd);
    return r;
}

/* The description goes last: without it nobody takes the rest for a model. */
static int store_all(struct stored *stored, const struct model *model, const struct files_now *now)
{
    int r = 0;
    if (stored->n_headers == 0) {
        r = put(stored, STORE_ARENA, 0, model->export.fd);
        if (r == 0)
            r = store_header(stored, model);
    }
    if (r == 0)
        r = store_files(stored, model->source, now);
    return r == 0 ? store_description(stored, model, now) : r;
}

static void take_out_memory(struct stored *stored)
{
    if (stored->n_headers > 0)
        take_out(stored, STORE_ARENA, 0);
    for (size_t i = 0; i < stored->n_headers; i++)
        take_out(stored, STORE_HEADER, (uint32_t)i);
    stored->n_headers = 0;
}

/* The store has the new description: what only the one before needed goes. */
static void change(struct stored *stored, struct files_now *now)
{
    if (stored->sequence > 0)
        take_out(stored, STORE_DESCRIPTION, stored->sequence);
    stored->sequence++;
    take_out_files(stored, stored->files, stored->n_files, now->files, now->n);
    free(stored->files);
    stored->files = now->files;
    stored->n_files = now->n;
    stored->next_number += (uint32_t)now->n_new;
    now->files = NULL;
}

/* Stores the model as it is, and removes what was there before. Nothing is removed, nor sent, unless all that is new
 * has room. */
static int store_model(struct stored *stored, const struct model *model)
{
    struct files_now now;
    int r = find_files(stored, model->source, &now);
    if (r < 0)
        return r;
    const size_t before = stored->charge.n;
    const bool again = stored->n_headers > 0;
    const size_t n_headers = again ? stored->n_headers : count_headers(model);
    r = store_room_claim(stored->room, &stored->charge, 2 + n_headers + now.n, again + now.n_gone);
    if (r == 0) {
        r = store_all(stored, model, &now);
        if (r == 0)
            change(stored, &now);
        else {
            take_out_files(stored, now.files, now.n, stored->files, stored->n_files);
            if (!again)
                take_out_memory(stored);
            store_room_set(stored->room, &stored->charge, before);
        }
    }
    free(now.files);
    return r;
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

struct stored *stored_new(struct model *model, struct store_room *room)
{
    struct stored *stored = calloc(1, sizeof(*stored));
    if (!stored)
        return NULL;
    if (getrandom(&stored->key, sizeof(stored->key), GRND_NONBLOCK) != (ssize_t)sizeof(stored->key) ||
        store_room_begin(room, model->uid, &stored->charge) < 0) {
        free(stored);
        return NULL;
    }
    stored->room = room;
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
        return has_file(stored->files, stored->n_files, name->number);
    }
}

struct stored *stored_again(struct model *model, struct store_room *room, const struct description *description,
                            const struct store_entry *latest, const struct store_entry *entries, size_t n)
{
    struct stored *stored = calloc(1, sizeof(*stored));
    struct description_file *files = calloc(description->n_files, sizeof(*files));
    struct store_charge charge;
    if (!stored || !files || store_room_begin(room, model->uid, &charge) < 0) {
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
        .room = room,
        .charge = charge,
    };
    model->stored = stored;
    store_room_set(room, &stored->charge, 2 + stored->n_headers + stored->n_files);
    for (size_t i = 0; i < n; i++) {
        const struct store_name *name = &entries[i].name;
        if (name->role == STORE_FILE && name->number >= stored->next_number)
            stored->next_number = name->number + 1;
        if (!needs(stored, name))
            store_remove(name);
    }
    return stored;
}

/* Once for each model, until it is kept. */
static void tell_no_room(const struct stored *stored, int error)
{
    const struct model *model = stored->model;
    const struct log_fields fields = {.id = MESSAGE_MODEL_NOT_KEPT, .model = model->name};
    log_write_fields(LOG_LEVEL_WARNING, &fields, "model=%s id=%" PRIu64 " %s: %s; it is tried again when there is room",
                     model->name, model->id,
                     stored->sequence > 0 ? "would outlive the daemon only as it was before its last change"
                                          : "would not outlive the daemon",
                     error == -EDQUOT ? "its user's share of the store is used up" : "the store is full");
}

void stored_update(struct stored *stored)
{
    const struct model *model = stored->model;
    const uint64_t print = print_of(model);
    if (stored->print == print) {
        stored->waits = false;
        return;
    }
    const int r = store_model(stored, model);
    const bool waited = stored->waits;
    stored->waits = r == -EDQUOT || r == -ENOSPC;
    if (stored->waits) {
        if (!waited)
            tell_no_room(stored, r);
        return;
    }
    if (r < 0)
        log_client(LOG_LEVEL_WARNING, "model=%s id=%" PRIu64 " would not outlive the daemon as it is now: %s",
                   model->name, model->id, strerror(-r));
    else if (waited)
        log_write(LOG_LEVEL_NOTICE, "model=%s id=%" PRIu64 " would outlive the daemon now: there was room", model->name,
                  model->id);
    stored->print = print;
}

/* The description goes first: without it nobody takes the rest for a model. */
void stored_remove(struct stored *stored)
{
    if (stored->sequence > 0)
        take_out(stored, STORE_DESCRIPTION, stored->sequence);
    take_out_memory(stored);
    take_out_files(stored, stored->files, stored->n_files, NULL, 0);
    stored_free(stored);
}

void stored_free(struct stored *stored)
{
    store_room_end(stored->room, &stored->charge);
    stored->model->stored = NULL;
    free(stored->files);
    free(stored);
}
