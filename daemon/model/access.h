/* Who may read a model's files: a decision from facts, without a call to the system.
 *
 * The facts are what the kernel's own decision rests on: owner, group and mode of each file, and of each folder above
 * it. A file or folder with an access control list counts as its owner's alone, for the list is not read.
 *
 * Facts are immutable, and counted by whoever keeps them. Counting is for the loop thread; any thread may read. */
#pragma once

#include "daemon/base/peer.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Who sees a model, and may attach to it, besides root and the daemon's own user. */
enum access {
    ACCESS_READERS, /* who may read its files */
    ACCESS_PRIVATE, /* the user who loaded it */
    ACCESS_PUBLIC,  /* everybody */
};

/* "readers", "private", "public". Static. */
const char *access_name(enum access access);

/* A file or a folder. */
struct access_entry {
    uid_t owner;
    gid_t group;
    mode_t mode;
    bool acl; /* it has an access control list */
};

struct access_facts {
    unsigned references; /* 0: static */
    bool placed;         /* the folders above all of the files are known */
    size_t n_files;
    size_t n_folders;                   /* each one once where the files share it */
    const struct access_entry *entries; /* the files, then the folders */
};

/* Facts with room for so many entries, which the caller fills before anybody else sees them. One reference. -ENOMEM. */
int access_facts_new(size_t n_files, size_t n_folders, struct access_facts **ret, struct access_entry **ret_entries);

/* Keeps them for one more; returns them. NULL is fine. */
struct access_facts *access_facts_ref(struct access_facts *facts);

/* NULL is fine. */
void access_facts_unref(struct access_facts *facts);

/* The peer may read the file, or search the folder. No uid is special here. */
bool access_may_read(const struct access_entry *file, const struct peer *peer);
bool access_may_search(const struct access_entry *folder, const struct peer *peer);

/* The peer may read all of the files, and get to them. If the folders are not known, only the files' owner may. No uid
 * is special here either: trust is for the caller to add. facts NULL: nobody may. */
bool access_permits(const struct access_facts *facts, const struct peer *peer);

/* access_permits() of some process of this user, whose groups are not known. */
bool access_may_permit(const struct access_facts *facts, uid_t uid);

/* Everybody may. */
bool access_permits_all(const struct access_facts *facts);

/* The user owns all of the files. */
bool access_owns(const struct access_facts *facts, uid_t uid);
