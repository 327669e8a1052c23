#include "daemon/model/access.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

const char *access_name(enum access access)
{
    static const char *const names[] = {
        [ACCESS_READERS] = "readers",
        [ACCESS_PRIVATE] = "private",
        [ACCESS_PUBLIC] = "public",
    };
    return names[access];
}

int access_facts_new(size_t n_files, size_t n_folders, struct access_facts **ret, struct access_entry **ret_entries)
{
    struct access_facts *facts = calloc(1, sizeof(*facts) + (n_files + n_folders) * sizeof(struct access_entry));
    if (!facts)
        return -ENOMEM;
    struct access_entry *entries = (struct access_entry *)(facts + 1);
    *facts = (struct access_facts){.references = 1, .n_files = n_files, .n_folders = n_folders, .entries = entries};
    *ret = facts;
    *ret_entries = entries;
    return 0;
}

struct access_facts *access_facts_ref(struct access_facts *facts)
{
    if (facts && facts->references > 0)
        facts->references++;
    return facts;
}

void access_facts_unref(struct access_facts *facts)
{
    if (facts && facts->references > 0 && --facts->references == 0)
        free(facts);
}

/* The kernel's rule: only the owner's bits count for the owner, only the group's bits for a member of the group, and
 * only the bits of "others" for everybody else. bit: the permission, as the bit of "others". */
static bool grants(const struct access_entry *entry, const struct peer *peer, mode_t bit)
{
    if (peer->uid == entry->owner)
        return entry->mode & (bit << 6);
    if (entry->acl)
        return false;
    return entry->mode & (peer_in_group(peer, entry->group) ? bit << 3 : bit);
}

bool access_may_read(const struct access_entry *file, const struct peer *peer)
{
    return grants(file, peer, S_IROTH);
}

bool access_may_search(const struct access_entry *folder, const struct peer *peer)
{
    return grants(folder, peer, S_IXOTH);
}

bool access_permits(const struct access_facts *facts, const struct peer *peer)
{
    if (!facts || (!facts->placed && !access_owns(facts, peer->uid)))
        return false;
    for (size_t i = 0; i < facts->n_files; i++)
        if (!access_may_read(&facts->entries[i], peer))
            return false;
    for (size_t i = 0; i < facts->n_folders && facts->placed; i++)
        if (!access_may_search(&facts->entries[facts->n_files + i], peer))
            return false;
    return true;
}

bool access_may_permit(const struct access_facts *facts, uid_t uid)
{
    if (!facts || (!facts->placed && !access_owns(facts, uid)))
        return false;
    const size_t n = facts->n_files + (facts->placed ? facts->n_folders : 0);
    for (size_t i = 0; i < n; i++) {
        const struct access_entry *entry = &facts->entries[i];
        const mode_t bit = i < facts->n_files ? S_IROTH : S_IXOTH;
        const mode_t some = entry->owner == uid ? bit << 6 : entry->acl ? 0 : bit << 3 | bit;
        if (!(entry->mode & some))
            return false;
    }
    return true;
}

/* access_lost() of one file or folder. */
static bool entry_lost(const struct access_entry *before, const struct access_entry *now, uid_t uid, mode_t bit)
{
    if (before->owner != now->owner || before->group != now->group || (!before->acl && now->acl))
        return true;
    const mode_t bits = uid == now->owner ? bit << 6 : bit << 3 | bit;
    return before->mode & ~now->mode & bits;
}

bool access_lost(const struct access_facts *before, const struct access_facts *now, uid_t uid)
{
    if (!before || !now)
        return false;
    if (before->n_files != now->n_files || (before->placed && !now->placed))
        return true;
    for (size_t i = 0; i < now->n_files; i++)
        if (entry_lost(&before->entries[i], &now->entries[i], uid, S_IROTH))
            return true;
    if (!before->placed)
        return false;
    if (before->n_folders != now->n_folders)
        return true;
    for (size_t i = now->n_files; i < now->n_files + now->n_folders; i++)
        if (entry_lost(&before->entries[i], &now->entries[i], uid, S_IXOTH))
            return true;
    return false;
}

/* The bits of "others" are not enough: the owner or the group may have fewer rights than others. */
static bool grants_all(const struct access_entry *entry, mode_t bit)
{
    const mode_t bits = bit | bit << 3 | bit << 6;
    return !entry->acl && (entry->mode & bits) == bits;
}

bool access_all_may_search(const struct access_entry *folder)
{
    return grants_all(folder, S_IXOTH);
}

bool access_permits_all(const struct access_facts *facts)
{
    if (!facts || !facts->placed)
        return false;
    for (size_t i = 0; i < facts->n_files + facts->n_folders; i++)
        if (!grants_all(&facts->entries[i], i < facts->n_files ? S_IROTH : S_IXOTH))
            return false;
    return true;
}

/* Whether the entry allows all that the other one allows. bit: the permission, as the bit of "others". */
static bool entry_covers(const struct access_entry *entry, const struct access_entry *other, mode_t bit)
{
    const mode_t bits = bit | bit << 3 | bit << 6; /* no other permission counts */
    if (grants_all(entry, bit))
        return true;
    return entry->owner == other->owner && entry->group == other->group && (!entry->acl || other->acl) &&
           (other->mode & bits & ~entry->mode) == 0;
}

bool access_covers(const struct access_facts *facts, const struct access_facts *others)
{
    if (access_permits_all(facts))
        return true;
    if (!facts || !others || facts->n_files != others->n_files || facts->n_folders != others->n_folders ||
        facts->placed != others->placed)
        return false;
    for (size_t i = 0; i < facts->n_files + facts->n_folders; i++)
        if (!entry_covers(&facts->entries[i], &others->entries[i], i < facts->n_files ? S_IROTH : S_IXOTH))
            return false;
    return true;
}

bool access_owns(const struct access_facts *facts, uid_t uid)
{
    bool owns = facts != NULL;
    for (size_t i = 0; owns && i < facts->n_files; i++)
        owns = facts->entries[i].owner == uid;
    return owns;
}
