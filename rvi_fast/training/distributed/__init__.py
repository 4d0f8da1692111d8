"""Training by several processes, on one machine or many: `torchrun --nproc-per-node=8 train.py`.

    device = distributed.init()
    x = np.load("table.npy", mmap_mode="r")
    model = rvi_fast.models.rvi(*x.shape, shard=distributed.rows_of_rank(len(x)))
    rvi_fast.fit(model, x, run_dir="runs/table", device=device, resume=True)
    distributed.leave()

Every process owns some rows: their posteriors, their moments, their data. Rows are never sent
anywhere. Relays, decoder and scale are the same in all processes, and in each step one sum over all
processes, of one buffer, makes their gradients the same. An epoch's order is that of a single process,
so that W processes do what one does with the same batch size, to rounding: each takes the rows of a
batch that it owns, be they none. On GPUs, steps of six launches are replayed from CUDA graphs, with the
sum of gradients by NCCL in them; other steps are launched one by one. On CPUs, and in those, the sum is
under way while each process steps its rows.

An encoder (`models.vae(shard=)`, `EncoderPosterior(shard=)`) and modules of one's own as decoder or
likelihood are trained so too. They are passed as they are, without `DistributedDataParallel`; a process
that has no row of a batch calls them with a row that counts nothing. What they draw themselves, as
dropout does, differs with the number of processes. Batch normalisation is refused, and so are buffers
that come to differ between processes, since both are of the rows of a process.

With rows in blocks (`fit(block_rows=)`, `storage="host"` or a directory) each process has blocks of its
own rows in memory, in files of its own, and a window of the order has blocks of as many parts of the
table as processes have begun the run: another order than that of a single process with blocks, and the
same one whatever number of processes goes on.

The first process shows progress, writes metrics and calls callbacks. A process that dies or hangs ends
all others within the timeout of `init`; started again with `resume=True` they go on from the last
checkpoint, in whatever number. `infer` and `impute` work on the rows that each process passes them.

In a loop of your own the rows must stay out of what synchronises gradients: wrap the decoder in
`DistributedDataParallel`, or tell it of the rows with `leave_rows`.
"""

from .launch import RankError, first, init, launched, leave, leave_rows, rows_of_rank, total

__all__ = [
    "RankError",
    "first",
    "init",
    "launched",
    "leave",
    "leave_rows",
    "rows_of_rank",
    "total",
]
