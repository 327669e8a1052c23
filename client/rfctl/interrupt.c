#include "client/rfctl/interrupt.h"

#include "client/rfctl/progress.h"

#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

/* Read by signal handlers. */
static const char *volatile line_to_say;
static const char *volatile text_to_print;

void interrupt_say(const char *line)
{
    line_to_say = line;
}

void interrupt_print(const char *text)
{
    text_to_print = text;
}

/* Nothing has to be told to the daemon: the connection closes with the program, and the daemon ends what this client
 * waited for. */
static void end(int number)
{
    progress_erase_in_handler();
    const char *line = line_to_say, *text = text_to_print;
    if (number == SIGINT && text)
        (void)!write(STDOUT_FILENO, text, strlen(text));
    if (number == SIGINT && line) {
        const char *const parts[] = {"rfctl: ", line, "\n"};
        for (size_t i = 0; i < 3; i++)
            (void)!write(STDERR_FILENO, parts[i], strlen(parts[i]));
    }
    if (number == SIGINT)
        _exit(INTERRUPT_STATUS);
    raise(number); /* its default action is set again (SA_RESETHAND): our parent sees which signal ended us */
}

void interrupt_catch(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        struct sigaction action;
        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler == SIG_DFL)
            sigaction(numbers[i], &(struct sigaction){.sa_handler = end, .sa_flags = (int)SA_RESETHAND}, NULL);
    }
}
