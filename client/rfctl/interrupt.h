/* What happens when a signal ends rfctl: the progress bar is erased, and after an interrupt (Ctrl-C) the exit status is
 * 130. */
#pragma once

/* The exit status after SIGINT, as shells have it: 128 + SIGINT. */
#define INTERRUPT_STATUS 130

/* Handles SIGINT, SIGTERM, SIGHUP and SIGQUIT from now on. A signal that is ignored already, as nohup does it, stays
 * ignored. Call it once, at the start. */
void interrupt_catch(void);

/* Sets a line that is written to standard error, after "rfctl: ", if an interrupt ends the program. The text is static;
 * NULL: no line. */
void interrupt_say(const char *line);

/* Sets text that is written to standard output, as it is, if an interrupt ends the program. It must stay valid and
 * unchanged until the next call; NULL: none. Standard output must have been flushed before the interrupt. */
void interrupt_print(const char *text);
