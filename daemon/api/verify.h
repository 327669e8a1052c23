/* Reads a resident model's file again, decodes it on the CPU, and compares with what the device holds.
 *
 * The model is held meanwhile: it is not unloaded. Loop thread only. */
#pragma once

#include "daemon/wire/conn.h"
#include "daemon/model/model.h"

struct server;
struct verify;

/* Begins; the call is answered when it is over. */
void verify_begin(struct server *server, struct model *model, struct call *call);

/* Tells who waits how far it is. Called several times a second. */
void verify_report(struct verify *verify);

/* Ends it early; the call is failed with `error`. */
void verify_end(struct verify *verify, enum wire_error error);

/* Who asked for it. */
uid_t verify_uid(const struct verify *verify);

/* The next one in turn, or NULL. */
struct verify *verify_next(struct verify *verify);
