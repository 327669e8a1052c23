/* The text of the interfaces that the daemon speaks, as GetInterfaceDescription answers with. */
#pragma once

/* io.rocmforge, word for word as in proto/io.rocmforge.varlink. */
extern const char interface_rocmforge[];

/* org.varlink.service, as varlink.org defines it. */
extern const char interface_service[];
