#include "client/rfctl/progress.h"

#include "client/rfctl/format.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/terminal.h"
#include "proto/clock.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BAR_MIN     10 /* columns; a shorter bar is left out */
#define BAR_MAX     40
#define STATE_MAX   10 /* columns of the longest state, "allocating", so that the bar stays in its place */
#define ROOM_BEHIND 3  /* columns that stay free for "^C" and the cursor */
#define LINE_SIZE   160
#define PLAIN_EVERY 1.0 /* seconds between two lines where there is no terminal */

static const char erase[] = "\r\033[K";

static volatile sig_atomic_t drawn; /* a line is on the terminal */

void progress_line(char *text, size_t size, size_t width, bool with_bar, const struct progress_values *values)
{
    char done[FORMAT_SIZE], total[FORMAT_SIZE], rate[FORMAT_SIZE], left[FORMAT_SIZE];
    char state[STATE_MAX + 1], figures[LINE_SIZE] = "";
    if (width >= size)
        width = size - 1;
    text[0] = '\0';
    snprintf(state, sizeof(state), "%s", values->state);
    double part = values->total > 0 ? fmin(fmax(values->done / values->total, 0), 1) : 0;

    /* The figures, the most important first. As many are shown as there is room for. */
    char parts[4][LINE_SIZE / 2];
    size_t n_parts = 0;
    if (values->total > 0) {
        snprintf(parts[n_parts++], sizeof(parts[0]), "%3.0f%%", floor(part * 100));
        format_bytes(done, values->done);
        format_bytes(total, values->total);
        char *unit = strchr(done, ' ');
        if (unit && strcmp(unit, strchr(total, ' ')) == 0)
            *unit = '\0';
        snprintf(parts[n_parts++], sizeof(parts[0]), "%s of %s", done, total);
    }
    if (values->rate > 0) {
        snprintf(parts[n_parts++], sizeof(parts[0]), "%s", format_rate(rate, values->rate));
        if (values->left >= 0)
            snprintf(parts[n_parts++], sizeof(parts[0]), "%s left", format_age(left, ceil(values->left)));
    }
    size_t used = STATE_MAX;
    for (size_t i = 0; i < n_parts && used + 2 + strlen(parts[i]) <= width; i++) {
        used += 2 + strlen(parts[i]);
        strcat(strcat(figures, "  "), parts[i]);
    }

    if (with_bar && values->total > 0 && width >= used + 4 + BAR_MIN) {
        size_t bar = width - used - 4 < BAR_MAX ? width - used - 4 : BAR_MAX;
        size_t full = (size_t)(part * (double)bar);
        char cells[BAR_MAX + 1];
        memset(cells, '#', full);
        memset(cells + full, '.', bar - full);
        cells[bar] = '\0';
        snprintf(text, width + 1, "%-*s  [%s]%s", STATE_MAX, state, cells, figures);
    } else
        snprintf(text, width + 1, "%-*s%s", figures[0] ? STATE_MAX : 0, state, figures);
}

static bool can_redraw(void)
{
    const char *term = getenv("TERM");
    return term && term[0] && strcmp(term, "dumb") != 0;
}

void progress_show(const cJSON *progress)
{
    static double next;
    static char shown[LINE_SIZE]; /* the last line, where there is no terminal */
    char *state = text_escape(reply_text(progress, "state"), strlen(reply_text(progress, "state")));
    struct progress_values values = {
        .state = state,
        .done = reply_number(progress, "done", 0),
        .total = reply_number(progress, "total", 0),
        .rate = reply_number(progress, "rate", 0),
        .left = reply_number(progress, "left", -1),
    };
    size_t width = terminal_width(STDERR_FILENO);
    char text[LINE_SIZE], line[sizeof(text) + sizeof(erase)];
    if (width > ROOM_BEHIND && can_redraw()) {
        /* A line that fills the whole width may wrap, and so may the "^C" that the terminal prints at an interrupt. */
        progress_line(text, sizeof(text), width - ROOM_BEHIND, true, &values);
        int n = snprintf(line, sizeof(line), "\r%s\033[K", text);
        drawn = 1;
        (void)!write(STDERR_FILENO, line, (size_t)n);
    } else if (next == 0) /* no line in the first second */
        next = clock_seconds() + PLAIN_EVERY;
    else if (clock_seconds() >= next) {
        next = clock_seconds() + PLAIN_EVERY;
        progress_line(text, sizeof(text), LINE_SIZE - 1, false, &values);
        if (strcmp(text, shown) != 0) /* of a load that is queued nothing changes for long */
            fprintf(stderr, "%s\n", strcpy(shown, text));
    }
    free(state);
}

void progress_erase(void)
{
    progress_erase_in_handler();
}

void progress_erase_in_handler(void)
{
    if (!drawn)
        return;
    (void)!write(STDERR_FILENO, erase, sizeof(erase) - 1);
    drawn = 0; /* after the write(): if a signal comes between the two, its handler erases again, which does no harm */
}
