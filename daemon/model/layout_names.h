/* What layouts that have a name say of tensors, by the names of the tensors alone. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Which part of a tensor one of several processes gets. */
enum name_part {
    PART_UNKNOWN,    /* no rule is known for such a name */
    PART_WHOLE,      /* each process has all of it */
    PART_ROWS,       /* equal parts of the rows */
    PART_PAIR,       /* the same of two tensors that the file has as one: gate_up_proj */
    PART_COLUMNS,    /* equal parts of the columns */
    PART_Q,          /* rows of whole heads */
    PART_KV,         /* the same; if there are fewer heads than processes, several have the same head */
    PART_QKV,        /* q, k and v, which the file has as one tensor */
    PART_VOCABULARY, /* equal parts of the rows, after these were padded to a multiple of VOCABULARY_PADDING */
};

/* As vLLM pads a vocabulary (its DEFAULT_VOCAB_PADDING_SIZE). */
#define VOCABULARY_PADDING 64u

#define NAME_SIBLINGS_MAX  3u

/* A tensor's name, taken apart. */
struct name_rule {
    enum name_part part;
    /* Unless 0, the tensor is the first one of a group; this is the number of members, whose names differ only in the
     * name of the module. */
    size_t n_siblings;
    const char *siblings[NAME_SIBLINGS_MAX]; /* the modules of all members: "q_proj", "k_proj", "v_proj" */
    const char *fused;                       /* what stands instead in the group's name: "qkv_proj" */
    size_t module;                           /* where the module begins in the name */
    const char *kind;                        /* what follows: ".weight"; in the name */
    /* The tensor is of the first one of numbered experts: PREFIX0.MODULE.weight. */
    bool expert;
    size_t prefix; /* bytes of PREFIX, with the dot at its end */
};

/* The rule of vLLM for a tensor: packed_modules_mapping, FusedMoE, and its parallel layers, for Llama, Mistral, Qwen,
 * Gemma, Phi-3, and experts as Mixtral or Qwen name them. */
struct name_rule name_rule_vllm(const char *name);

/* Whether the name in a GGUF file is that of a layer's q ('q') or k ('k'); 0: neither. */
char name_of_attention(const char *name);
