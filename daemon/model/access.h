/* Decides who may read a model's files, from facts that were gathered before. Makes no system call.
 *
 * The kernel decides from the same facts: owner, group and mode of each file, and of each folder above it. Access
 * control lists are not read. So a file or folder that has one counts as readable by its owner only.
 *
 * Facts are immutable and have a reference count. Only the loop thread changes the count; any thread may read the
 * facts. */
#pragma once

#include "daemon/base/peer.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Who sees a model and may attach to it. Root and the daemon's own user are not restricted by this. */
enum access {
    ACCESS_READERS, /* users who may read its files; of a model that was published nobody */
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
    size_t n_folders;                   /* a folder that several files share is counted once */
    const struct access_entry *entries; /* the files, then the folders */
};

/* Makes facts with room for so many entries, and one reference. The caller fills the entries before it shares the
 * facts. -ENOMEM. */
int access_facts_new(size_t n_files, size_t n_folders, struct access_facts **ret, struct access_entry **ret_entries);

/* Adds a reference and returns the facts. NULL is allowed. */
struct access_facts *access_facts_ref(struct access_facts *facts);

/* NULL is fine. */
void access_facts_unref(struct access_facts *facts);

/* Whether the peer may read the file, or search the folder. Root has no special rights here. */
bool access_may_read(const struct access_entry *file, const struct peer *peer);
bool access_may_search(const struct access_entry *folder, const struct peer *peer);

/* Whether every user may search the folder. */
bool access_all_may_search(const struct access_entry *folder);

/* Whether the peer may read all files, and search all folders above them. If the folders are not known, only the owner
 * of the files may. Root has no special rights here: the caller checks for trusted users. facts NULL: nobody may. */
bool access_permits(const struct access_facts *facts, const struct peer *peer);

/* access_permits() for some process of this user, whose groups are not known. */
bool access_may_permit(const struct access_facts *facts, uid_t uid);

/* Whether the files or their folders were changed so that the user, who could read the files before, may not be able to
 * now: another owner or group, fewer rights, an access control list, or folders that are not known any more. Groups
 * that the user is in are not known. */
bool access_lost(const struct access_facts *before, const struct access_facts *now, uid_t uid);

/* Whether all may read the files of `facts` who may read those of `others`: every user may, or both have as many files
 * and folders, in the same order, with the same owners and groups, and those of `facts` allow no less. May also be
 * false where it is true. */
bool access_covers(const struct access_facts *facts, const struct access_facts *others);

/* Whether every user may read all files. */
bool access_permits_all(const struct access_facts *facts);

/* Whether the user owns all files. */
bool access_owns(const struct access_facts *facts, uid_t uid);
