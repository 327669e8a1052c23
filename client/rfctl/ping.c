/* ping and version: tell whether a daemon answers, how fast, and which version it is. */
#include "client/rfctl/format.h"
#include "client/rfctl/interrupt.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

/* How many seconds to wait for an answer, unless --deadline is given. It is this long because the first client may
 * start the daemon, which then looks for GPUs before it answers. */

#define SUMS_SIZE 160 /* bytes of the line with the sums */

struct pings {
    unsigned long n;
    double least, most, sum; /* milliseconds */
};

static void sums_text(char text[SUMS_SIZE], const struct rfctl *ctl, const struct pings *pings)
{
    double average = pings->sum / (double)pings->n;
    if (ctl->options.json)
        snprintf(text, SUMS_SIZE, "{\"replies\":%lu,\"min_ms\":%.3f,\"average_ms\":%.3f,\"max_ms\":%.3f}\n", pings->n,
                 pings->least, average, pings->most);
    else
        snprintf(text, SUMS_SIZE, "%lu repl%s: min %.3f, average %.3f, max %.3f ms\n", pings->n,
                 pings->n == 1 ? "y" : "ies", pings->least, average, pings->most);
}

/* If an interrupt ends the program from now on, it prints the sums so far. A signal handler reads the text, so two
 * texts take turns: the one that is set is never changed. */
static void sums_on_interrupt(const struct rfctl *ctl, const struct pings *pings)
{
    static char texts[2][SUMS_SIZE];
    char *text = texts[pings->n % 2];
    sums_text(text, ctl, pings);
    interrupt_print(text);
}

/* One round trip, and a line about it. */
static int ping(struct rfctl *ctl, struct pings *pings)
{
    struct timespec before, after;
    cJSON *reply = NULL;
    ctl->replies = false; /* print the time, not the reply */
    clock_gettime(CLOCK_MONOTONIC, &before);
    int status = ctl_ask(ctl, "Status", NULL, "ping", &reply);
    clock_gettime(CLOCK_MONOTONIC, &after);
    if (status != STATUS_DONE)
        return status;
    double ms = (double)(after.tv_sec - before.tv_sec) * 1e3 + (double)(after.tv_nsec - before.tv_nsec) / 1e6;
    pings->least = pings->n == 0 ? ms : fmin(pings->least, ms);
    pings->most = fmax(pings->most, ms);
    pings->sum += ms;
    pings->n++;
    if (ctl->options.json)
        out_line("{\"ms\":%.3f}", ms);
    else
        out_line("rocmforged %s, process %.0f: %.3f ms", reply_text(reply, "version"), reply_number(reply, "pid", 0),
                 ms);
    cJSON_Delete(reply);
    int r = out_flush();
    if (ctl->options.count > 0)
        sums_on_interrupt(ctl, pings);
    return r < 0 ? STATUS_REFUSED : STATUS_DONE;
}

int command_ping(struct rfctl *ctl)
{
    unsigned long count = ctl->options.count > 0 ? ctl->options.count : 1;
    struct pings pings = {0};
    int status = ctl_connect(ctl); /* before the loop: connecting is not part of the time */
    if (status == STATUS_DONE)
        ctl_hurry(ctl, ctl->options.deadline > 0 ? (unsigned)ctl->options.deadline : CTL_ANSWER_SECONDS);
    while (status == STATUS_DONE) {
        status = ping(ctl, &pings);
        if (status != STATUS_DONE || pings.n >= count)
            break;
        nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    }
    const bool last_word = status != STATUS_DONE && ctl->options.json; /* the error must be the last line */
    interrupt_print(NULL);
    if (!last_word && pings.n > 0 && ctl->options.count > 0) {
        char text[SUMS_SIZE];
        sums_text(text, ctl, &pings);
        fputs(text, stdout);
    }
    return status;
}

int command_version(struct rfctl *ctl)
{
    cJSON *reply = NULL;
    if (!ctl->options.json) {
        out_line("rfctl " ROCMFORGE_VERSION);
        if (rf_connect(ctl->options.socket, &ctl->client) < 0)
            return STATUS_DONE;
        ctl_hurry(ctl, ctl->options.deadline > 0 ? (unsigned)ctl->options.deadline : CTL_ANSWER_SECONDS);
        int status = ctl_ask(ctl, "Status", NULL, "ask the daemon", &reply);
        if (status == STATUS_DONE) {
            char age[FORMAT_SIZE];
            out_line("rocmforged %s, process %.0f, up for %s, decodes with %s", reply_text(reply, "version"),
                     reply_number(reply, "pid", 0), format_age(age, reply_number(reply, "uptime", 0)),
                     reply_text(reply, "isa"));
        }
        cJSON_Delete(reply);
        return status;
    }
    ctl->replies = false; /* one object for both */
    if (rf_connect(ctl->options.socket, &ctl->client) == 0) {
        ctl_hurry(ctl, ctl->options.deadline > 0 ? (unsigned)ctl->options.deadline : CTL_ANSWER_SECONDS);
        int status = ctl_ask(ctl, "Status", NULL, "ask the daemon", &reply);
        if (status != STATUS_DONE)
            return status;
    }
    cJSON *versions = ctl_name("rfctl", ROCMFORGE_VERSION);
    cJSON_AddItemToObject(versions, "daemon", reply ? reply : cJSON_CreateNull());
    char *text = cJSON_PrintUnformatted(versions);
    if (text)
        out_json(text);
    cJSON_free(text);
    cJSON_Delete(versions);
    return STATUS_DONE;
}
