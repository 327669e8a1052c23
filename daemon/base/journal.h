/* Sends lines with fields to systemd's journal, in the journal's own protocol.
 *
 * Never waits, as the library of systemd may: what the journal does not accept at once is refused. Any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What a line is about, for `journalctl FIELD=VALUE`. Members that are not set are left out. */
struct log_fields {
    const char *id;     /* MESSAGE_ID=, one of messages.h */
    const char *model;  /* MODEL= */
    const char *device; /* DEVICE= */
    bool has_bytes;
    uint64_t bytes; /* BYTES=: of memory on the device */
    bool has_duration;
    uint64_t duration_ns; /* DURATION_USEC= */
    bool has_uid;
    uid_t uid; /* CLIENT_UID= */
    pid_t pid; /* CLIENT_PID=; 0: left out */
};

/* Opens a way to the journal. Returns 0, or a negative errno if there is none. Before the first line. */
int journal_open(void);

/* Sends a line, which has no control characters, with its priority as syslog(3) counts. False: the journal did not
 * accept it, or is not open. */
bool journal_send(int priority, const char *text, size_t size, const struct log_fields *fields);
