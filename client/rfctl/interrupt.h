/* What happens when a signal ends rfctl: the progress bar is erased, and an interrupt (Ctrl-C) gives its own exit
 * status.
 */
#pragma once

/* The exit status after SIGINT, as shells have it: 128 + SIGINT. */
#define INTERRUPT_STATUS 130

/* Handles SIGINT, SIGTERM, SIGHUP and SIGQUIT from now on. A signal that is ignored already, as nohup does it, stays
 * ignored. Call it once, at the start. */
void interrupt_catch(void);

/* Sets a line that is written to standard error, after "rfctl: ", if an interrupt ends the program. The text is static;
 * NULL: no line. */
void interrupt_say(const char *line);

/* From now on the first interrupt does not end the program, but makes interrupt_came() true. The second one ends it. An
 * interrupt that is ignored stays ignored. */
void interrupt_defer(void);

/* True once a deferred interrupt has come. */
int interrupt_came(void);
