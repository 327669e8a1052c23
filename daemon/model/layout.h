/* The layout that a request asks for: which tensors stand as neighbours, so that an engine sees them as one, which rows
 * stand in another order, and which part of each tensor one of several processes needs. What that makes of a certain
 * model, arrange.h finds out.
 *
 * Immutable, with a reference count. Only the loop thread changes the count; any thread may read. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;

/* Most groups and most members in one request, and most bytes of a name. */
#define LAYOUT_GROUPS_MAX  1024u
#define LAYOUT_MEMBERS_MAX 8192u
#define LAYOUT_NAME_MAX    4095u

/* Most processes that share a model, and most attention heads. */
#define LAYOUT_PARTS_MAX 1024u
#define LAYOUT_HEADS_MAX 65536u

/* Layouts that have a name. */
enum layout_kind {
    LAYOUT_FILE, /* as in the file */
    LAYOUT_VLLM, /* vLLM's fused parameters, and its rules for the parts of several processes */
    LAYOUT_HF,   /* the rows of q and k in the order that transformers has */
};

/* Their names, ended by NULL. */
extern const char *const layout_names[];

/* What a process gets of each member of a group, if there are several processes. */
enum layout_cut {
    LAYOUT_WHOLE,
    LAYOUT_ROWS,    /* one of the equal parts along the first dimension */
    LAYOUT_COLUMNS, /* along the last one, of two */
};

struct layout_group {
    const char *name;
    const char *const *members;
    size_t n_members;
    uint32_t stack; /* 0: the members are joined along their first dimension. n: each n of them are joined so, and the
                       results are stacked along a new first dimension */
    uint32_t heads; /* unless 0: the rows of so many heads in each member stand in pairs in the file, and in halves in
                       memory */
    enum layout_cut cut;
};

struct layout {
    unsigned references; /* 0: static */
    enum layout_kind kind;
    uint32_t rank;            /* which of the parts; less than `parts` */
    uint32_t parts;           /* 1: the whole model */
    uint32_t heads, kv_heads; /* attention heads of the model; 0: the request does not tell */
    size_t n_groups;
    const struct layout_group *groups;
    size_t n_names;    /* of groups and their members */
    size_t name_bytes; /* of all these names together */
};

/* The static layout in which nothing is changed. For the functions below, NULL is the same. */
const struct layout *layout_none(void);

/* Makes a layout of a request's parameters, each of which may be NULL: the layout's name, the array of groups, and the
 * object {"rank", "size", "heads", "kvHeads"}. The caller gives it up with layout_unref(). -EINVAL, and the name of the
 * parameter that is not valid: "layout", "groups" or "tp"; -E2BIG: more groups or members than the limits; -ENOMEM. */
int layout_new(const char *name, const struct cJSON *groups, const struct cJSON *tp, const struct layout **ret,
               const char **ret_parameter);

/* Adds "layout", "groups" and "tp" to an object, as far as they are not the defaults. brief: of groups with long lists
 * of names there is only their number, as "groupsLeft". If memory is short, some of it is missing. */
void layout_describe(const struct layout *layout, struct cJSON *object, bool brief);

/* "vllm", "hf"; NULL for LAYOUT_FILE. Static. */
const char *layout_name(const struct layout *layout);

/* Adds a reference and returns the layout. */
const struct layout *layout_ref(const struct layout *layout);

void layout_unref(const struct layout *layout);

/* Whether both were asked for with the same words. */
bool layout_equal(const struct layout *a, const struct layout *b);

/* Why a layout does not fit a model. The names are borrowed from the model or from the layout; NULL: none. */
struct layout_fault {
    char reason[160];
    const char *tensor;
    const char *group;
};

/* Says why a layout does not fit. Returns -EDOM. */
int layout_refuse(struct layout_fault *fault, const char *tensor, const char *group, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
