/* Connecting again, and taking the leases again that ended with the connection. */
#include "client/attached.h"
#include "client/call.h"
#include "client/connection.h"
#include "client/error.h"
#include "client/fields.h"
#include "proto/clock.h"
#include "proto/errors.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <string.h>

/* The pause between two tries. */
#define RETRY_MS 5

static int take_lease(void *context, cJSON **parameters, bool continues, struct frame_message *message)
{
    rf_model *model = context;
    (void)message;
    if (!continues)
        model->leased = field_integer(*parameters, "lease", &model->lease);
    return model->leased ? 0 : client_break_answer(model->client, "Reattach", "the lease");
}

static int model_reattach(rf_model *model)
{
    const char *token = field_text(model->reply, "token");
    if (!token)
        return client_fail(model->client, -ENOENT, "the daemon gave no token for '%s'", model->name);
    cJSON *object = cJSON_CreateObject();
    char *text = NULL;
    if (cJSON_AddStringToObject(object, "name", model->name) && cJSON_AddStringToObject(object, "token", token))
        text = cJSON_PrintUnformatted(object);
    cJSON_Delete(object);
    if (!text)
        return client_fail(model->client, -ENOMEM, "no memory to attach");
    const struct call call = {.method = "Reattach", .parameters = text, .reply = take_lease, .context = model};
    const int r = client_call(model->client, &call);
    cJSON_free(text);
    const enum wire_error error =
        r < 0 && model->client->error_name ? wire_error_find(model->client->error_name) : WIRE_ERROR_COUNT;
    model->refused = error == WIRE_ModelBusy || error == WIRE_DeviceError;
    return r;
}

static void forget_leases(rf_client *client)
{
    rf_model *model;
    LIST_FOREACH(model, &client->models, link)
    {
        model->leased = model->refused = false;
    }
}

/* The daemon reports draining models only to clients with a lease, so a model that refused its
 * lease is reported here: once, even if it was attached several times. */
static void tell_refused(rf_client *client)
{
    const rf_model *model, *before;
    if (!client->draining)
        return;
    client->calling = true; /* as within any call */
    LIST_FOREACH(model, &client->models, link)
    {
        for (before = LIST_FIRST(&client->models); before != model; before = LIST_NEXT(before, link))
            if (before->refused && before->id == model->id)
                break;
        if (model->refused && before == model)
            client->draining(client->draining_context, model->name);
    }
    client->calling = false;
}

/* One try. *ret_missing: a model that the daemon does not have; NULL: none. */
static int try(rf_client *client, const rf_model **ret_missing)
{
    forget_leases(client);
    *ret_missing = NULL;
    int r = client_open(client);
    if (r < 0)
        return client_fail(client, r, "cannot connect to %s: %s", client->address.sun_path, strerror(-r));
    rf_model *model;
    LIST_FOREACH(model, &client->models, link)
    {
        r = model_reattach(model);
        if (r == -ENOENT || (r < 0 && !client->broken))
            *ret_missing = model;
        else if (r < 0) {
            forget_leases(client);
            return r;
        }
    }
    return 0;
}

/* Whether another try may go better: no daemon is there yet, or it has gone again. */
static bool may_come(int error)
{
    return error == -ENOENT || error == -ECONNREFUSED || error == -ECONNRESET || error == -ETIMEDOUT;
}

int rf_reconnect(rf_client *client, double seconds)
{
    client_clear(client);
    if (client_is_forked(client))
        return client_fail(client, -ENOTSUP, "the connection belongs to the parent process");
    if (client->calling)
        return client_fail(client, -EDEADLK, "another call is under way on this connection");
    if (!(seconds >= 0) || isinf(seconds))
        return client_fail(client, -EINVAL, "not a valid number of seconds: %g", seconds);
    const double ends = clock_seconds() + seconds;
    const rf_model *missing = NULL;
    int r;
    while ((r = try(client, &missing)) < 0 && may_come(r) && clock_seconds() < ends)
        poll(NULL, 0, RETRY_MS);
    if (r < 0 || !missing)
        return r;
    tell_refused(client);
    return client_fail(client, -ESTALE,
                       missing->refused ? "the daemon gives no lease on '%s' any more: it drains, or its device is lost"
                                        : "the daemon does not have '%s' any more",
                       missing->name);
}

int rf_model_leased(const rf_model *model)
{
    return model->leased;
}
