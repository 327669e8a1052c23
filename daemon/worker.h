/* What a worker thread does before its first long job: it steps back behind the loop, which has to answer within a
 * millisecond while all processors read and decode. */
#pragma once

/* Any thread of the work queue, at the beginning of each long job. Cheap after the first time. */
void worker_step_back(void);

/* Numbers the threads that asked, from 0. Any thread. */
unsigned worker_number(void);
