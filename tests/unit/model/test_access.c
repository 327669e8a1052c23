/* daemon/model/access.c and access_read.c: who may read a file, by a table, and held against the kernel. */
#include "daemon/model/access_read.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static char folder[64];

static const char *in_folder(const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

static int folder_make(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/rfaXXXXXX");
    return mkdtemp(folder) && chmod(folder, 0755) == 0 ? 0 : -1;
}

static int folder_remove(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

/* --- the table --- */

static void by_the_table(void **state)
{
    (void)state;
    static const gid_t groups[] = {50, 60};
    static const struct peer owner = {.uid = 10, .gid = 10}, member = {.uid = 11, .gid = 20},
                             further = {.uid = 12, .gid = 12, .n_groups = 2, .groups = groups},
                             stranger = {.uid = 13, .gid = 13}, root = {.uid = 0};
    static const struct {
        struct access_entry entry; /* owner 10 */
        bool owner, member, further, stranger;
    } cases[] = {
        {{10, 20, 0600, false}, true, false, false, false},  {{10, 20, 0640, false}, true, true, false, false},
        {{10, 60, 0640, false}, true, false, true, false},   {{10, 20, 0644, false}, true, true, true, true},
        {{10, 20, 0604, false}, true, false, true, true},    {{10, 20, 0044, false}, false, true, true, true},
        {{10, 20, 0444, true}, true, false, false, false},   {{10, 20, 0044, true}, false, false, false, false},
        {{10, 20, 0333, false}, false, false, false, false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(access_may_read(&cases[i].entry, &owner), cases[i].owner);
        assert_int_equal(access_may_read(&cases[i].entry, &member), cases[i].member);
        assert_int_equal(access_may_read(&cases[i].entry, &further), cases[i].further);
        assert_int_equal(access_may_read(&cases[i].entry, &stranger), cases[i].stranger);
        assert_int_equal(access_may_read(&cases[i].entry, &root), cases[i].stranger);
    }
    const struct access_entry passage = {10, 20, 0711, false};
    assert_true(access_may_search(&passage, &stranger));
    assert_false(access_may_read(&passage, &stranger));
}

static void all_of_the_files_and_all_of_the_folders(void **state)
{
    (void)state;
    const struct peer owner = {.uid = 10, .gid = 10}, stranger = {.uid = 13, .gid = 13};
    struct access_entry entries[] = {
        {10, 10, 0644, false}, {10, 10, 0644, false}, {0, 0, 0755, false}, {10, 10, 0711, false}};
    struct access_facts facts = {.placed = true, .n_files = 2, .n_folders = 2, .entries = entries};
    assert_true(access_permits(&facts, &owner) && access_permits(&facts, &stranger));
    assert_true(access_permits_all(&facts) && access_owns(&facts, 10) && !access_owns(&facts, 13));
    static const mode_t modes[] = {0600, 0600, 0700, 0700};
    for (size_t i = 0; i < 4; i++) {
        const struct access_entry entry = entries[i];
        entries[i].mode = modes[i];
        assert_false(access_permits(&facts, &stranger) || access_permits_all(&facts));
        assert_int_equal(access_permits(&facts, &owner), i != 2);
        entries[i] = entry;
        entries[i].acl = true;
        assert_false(access_permits(&facts, &stranger) || access_permits_all(&facts));
        entries[i] = entry;
    }
    facts.placed = false;
    assert_true(access_permits(&facts, &owner));
    assert_false(access_permits(&facts, &stranger) || access_permits_all(&facts));
    entries[1].owner = 13;
    assert_false(access_permits(&facts, &owner) || access_owns(&facts, 10));
    assert_false(access_permits(NULL, &owner) || access_owns(NULL, 0) || access_permits_all(NULL));
}

static void who_may_read_both(void **state)
{
    (void)state;
    const struct access_entry before[] = {{10, 20, 0640, false}, {0, 0, 0755, false}};
    const struct access_facts others = {.placed = true, .n_files = 1, .n_folders = 1, .entries = before};
    static const struct {
        struct access_entry file, folder;
        bool covers;
    } cases[] = {
        {{10, 20, 0640, false}, {0, 0, 0755, false}, true},   {{10, 20, 0440, false}, {0, 0, 0755, false}, true},
        {{10, 20, 0600, false}, {0, 0, 0755, false}, false},  {{11, 20, 0640, false}, {0, 0, 0755, false}, false},
        {{10, 21, 0640, false}, {0, 0, 0755, false}, false},  {{11, 21, 0644, false}, {0, 0, 0755, false}, true},
        {{11, 21, 0644, false}, {0, 0, 0750, false}, false},  {{11, 21, 0644, true}, {0, 0, 0755, false}, false},
        {{10, 20, 0640, true}, {0, 0, 0755, false}, false},   {{10, 20, 0640, false}, {0, 0, 0711, false}, true},
        {{10, 20, 0640, false}, {13, 13, 0711, false}, true}, {{10, 20, 0640, false}, {13, 13, 0701, false}, false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct access_entry now[] = {cases[i].file, cases[i].folder};
        struct access_facts facts = {.placed = true, .n_files = 1, .n_folders = 1, .entries = now};
        assert_int_equal(access_covers(&facts, &others), cases[i].covers);
        facts.placed = false;
        assert_false(access_covers(&facts, &others));
    }
    assert_false(access_covers(NULL, &others) || access_covers(&others, NULL));
}

/* --- gathering --- */

static struct access_facts *facts_of(const char *path, const struct access_facts *before, struct source **ret_source)
{
    struct device_fault fault;
    struct access_facts *facts;
    if (!*ret_source)
        assert_int_equal(source_open_path(path, ret_source, &(struct shard_paths){0}, &fault), 0);
    assert_int_equal(access_read(*ret_source, before, &facts, &fault), 0);
    return facts;
}

static void make_file(const char *path, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && write(fd, "x", 1) == 1 && fchmod(fd, mode) == 0);
    close(fd);
}

/* What a file system shows of modes, links, names that are gone, lists. */
static void what_is_there(void **state)
{
    (void)state;
    struct source *source = NULL;
    const char *path = in_folder("file");
    make_file(path, 0644);
    struct access_facts *facts = facts_of(path, NULL, &source);
    assert_true(facts->placed && facts->n_files == 1 && facts->n_folders == 3); /* it, /tmp, / */
    assert_true(access_permits_all(facts));
    assert_int_equal(chmod(folder, 0700), 0);
    struct access_facts *closed = facts_of(path, facts, &source);
    assert_false(access_permits_all(closed));
    assert_int_equal(chmod(folder, 0755), 0);

    /* Another file takes its name: the folders stay, the mode is looked at. */
    make_file(in_folder("next"), 0600);
    assert_int_equal(rename(in_folder("next"), path), 0);
    struct access_facts *gone = facts_of(path, facts, &source);
    assert_true(gone->placed && access_permits_all(gone));
    access_facts_unref(gone);
    gone = facts_of(path, NULL, &source); /* but nobody knows where it was */
    assert_false(gone->placed);
    access_facts_unref(gone);
    assert_int_equal(fchmod(source->files[0].fd, 0600), 0);
    gone = facts_of(path, facts, &source);
    assert_false(access_permits_all(gone));
    access_facts_unref(gone);
    access_facts_unref(closed);
    access_facts_unref(facts);
    source_free(source);

    source = NULL;
    assert_int_equal(symlink("file", in_folder("link")), 0);
    facts = facts_of(in_folder("link"), NULL, &source);
    assert_true(facts->placed && (facts->entries[0].mode & 0777) == 0600);
    access_facts_unref(facts);
    source_free(source);

    int fd = memfd_create("nowhere", MFD_CLOEXEC);
    struct device_fault fault;
    assert_int_equal(source_open_fds(&fd, 1, &source, &fault), 0);
    facts = facts_of(NULL, NULL, &source);
    assert_false(facts->placed);
    assert_true(access_owns(facts, getuid()));
    access_facts_unref(facts);
    source_free(source);
}

/* user::rw-, user:1:r--, group::r--, mask::r--, other::r--, as the kernel keeps it. */
static const unsigned char list[] = {2, 0, 0,   0,   1,   0,   6,  0, 255, 255, 255, 255, 2,   0,  4,
                                     0, 1, 0,   0,   0,   4,   0,  4, 0,   255, 255, 255, 255, 16, 0,
                                     4, 0, 255, 255, 255, 255, 32, 0, 4,   0,   255, 255, 255, 255};

static void lists(void **state)
{
    (void)state;
    make_file(in_folder("listed"), 0644);
    if (setxattr(in_folder("listed"), "system.posix_acl_access", list, sizeof(list), 0) < 0) {
        print_message("no access control lists in %s: %s\n", folder, strerror(errno));
        skip();
    }
    struct source *source = NULL;
    struct access_facts *facts = facts_of(in_folder("listed"), NULL, &source);
    const struct peer stranger = {.uid = 13, .gid = 13};
    assert_true(facts->entries[0].acl && !access_permits(facts, &stranger));
    access_facts_unref(facts);
    source_free(source);
}

/* --- the kernel --- */

#define TREES 150
#define DEPTH 3
#define USERS 4

/* Whether the kernel lets this process, as the peer, open the file. */
static bool kernel_permits(const struct peer *peer, const char *path)
{
    pid_t child = fork();
    if (child == 0) {
        if (setgroups(peer->n_groups, peer->groups) < 0 || setgid(peer->gid) < 0 || setuid(peer->uid) < 0)
            _exit(2);
        int fd = open(path, O_RDONLY);
        _exit(fd >= 0 ? 0 : errno == EACCES && faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) < 0 ? 1 : 3);
    }
    int status = 0;
    assert_true(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) < 2);
    return WEXITSTATUS(status) == 0;
}

static void as_the_kernel_does(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("needs root, to be several users\n");
        skip();
    }
    static const gid_t groups[] = {3001, 3003};
    static const struct peer peers[USERS] = {
        {.uid = 2001, .gid = 3001},
        {.uid = 2002, .gid = 3002, .n_groups = 1, .groups = groups},
        {.uid = 2003, .gid = 3003},
        {.uid = 2004, .gid = 3004, .n_groups = 2, .groups = groups},
    };
    srandom(7);
    size_t permitted = 0;
    for (unsigned tree = 0; tree < TREES; tree++) {
        char path[256];
        snprintf(path, sizeof(path), "%s/t%u", folder, tree);
        for (unsigned level = 0; level <= DEPTH; level++) {
            const mode_t mode = (mode_t)(random() & 0777) | (random() % 4 ? 0555 : 0);
            if (level < DEPTH)
                assert_int_equal(mkdir(path, 0700), 0);
            else
                make_file(path, 0600);
            assert_int_equal(chown(path, 2001 + (uid_t)(random() % 3), 3001 + (gid_t)(random() % 3)), 0);
            assert_int_equal(chmod(path, mode), 0);
            if (level < DEPTH)
                strcat(path, "/x");
        }
        struct source *source = NULL;
        struct access_facts *facts = facts_of(path, NULL, &source);
        bool all = true;
        for (size_t i = 0; i < USERS; i++) {
            const bool permits = kernel_permits(&peers[i], path);
            assert_int_equal(access_permits(facts, &peers[i]), permits);
            permitted += permits;
            all = all && permits;
        }
        assert_true(all || !access_permits_all(facts));
        access_facts_unref(facts);
        source_free(source);
    }
    assert_true(permitted > TREES / 4 && permitted < TREES * USERS * 3 / 4); /* both answers were asked for */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_the_table),
        cmocka_unit_test(all_of_the_files_and_all_of_the_folders),
        cmocka_unit_test(who_may_read_both),
        cmocka_unit_test(what_is_there),
        cmocka_unit_test(lists),
        cmocka_unit_test(as_the_kernel_does),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
