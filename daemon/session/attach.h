/* Grants leases: makes the reply that tells a client where a model's memory is.
 *
 * Loop thread only. */
#pragma once

struct call;
struct model;
struct server;

/* Answers an Attach call on a resident model: with a lease, or with what stands against it. */
void attach_grant(struct server *server, struct model *model, struct call *call);
