/* What rfctl says about an error of the daemon: the reason, and what the user can do about it. */
#pragma once

/* What an error means to one command. Any of them may be NULL. */
struct refusal_words {
    const char *busy;    /* what ModelBusy means, in every case: "it is not being loaded" */
    const char *loading; /* what to do while the model is being loaded: "'rfctl cancel llama' stops the load" */
    const char *leased;  /* what to do while clients are attached to the model */
};

/* The sentence for the error `name` ("io.rocmforge.ModelBusy") with these parameters (JSON text, or NULL). `message` is
 * the library's sentence. The caller frees the result. Ends the program if there is no memory. */
char *refusal_text(const char *name, const char *parameters, const char *message, const struct refusal_words *words);
