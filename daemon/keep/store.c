#include "daemon/keep/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#define PREFIX "rocmforge-"

static const char letters[STORE_ROLES + 1] = "dahf";

bool store_there(void)
{
    return getenv("NOTIFY_SOCKET") != NULL;
}

size_t store_most(void)
{
    const char *text = getenv("FDSTORE");
    char *end;
    if (!text || *text < '0' || *text > '9')
        return STORE_MAX;
    const unsigned long most = strtoul(text, &end, 10);
    return *end == '\0' && most < STORE_MAX ? most : STORE_MAX;
}

static void name_write(const struct store_name *name, char ret[STORE_NAME_SIZE])
{
    snprintf(ret, STORE_NAME_SIZE, PREFIX "%016" PRIx64 "-%c%" PRIu32, name->key, letters[name->role], name->number);
}

int store_add(const struct store_name *name, int fd)
{
    char text[STORE_NAME_SIZE], message[STORE_NAME_SIZE + 64];
    name_write(name, text);
    /* FDPOLL=0: it stays in the store whatever the descriptor says of itself. */
    snprintf(message, sizeof(message), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", text);
    const int r = sd_pid_notify_with_fds(0, 0, message, &fd, 1);
    return r > 0 ? 0 : r == 0 ? -ENOENT : r;
}

void store_remove(const struct store_name *name)
{
    char text[STORE_NAME_SIZE];
    name_write(name, text);
    (void)sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", text);
}

void store_wait(void)
{
    (void)sd_notify_barrier(0, 2000000);
}

bool store_name_parse(const char *text, struct store_name *ret)
{
    struct store_name name = {0};
    char letter, again[STORE_NAME_SIZE];
    if (sscanf(text, PREFIX "%16" SCNx64 "-%c%" SCNu32, &name.key, &letter, &name.number) != 3)
        return false;
    const char *role = letter ? strchr(letters, letter) : NULL;
    if (!role)
        return false;
    name.role = (enum store_role)(role - letters);
    name_write(&name, again);
    if (strcmp(text, again) != 0)
        return false;
    *ret = name;
    return true;
}
