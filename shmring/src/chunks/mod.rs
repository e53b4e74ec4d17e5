//! Chunks of memory that are sent by reference, and passed on, without copying.
//!
//! A *pool* is memory of one process, its *owner*, in chunks of equal length. The owner writes a message into a chunk and sends the
//! chunk's [`Name`](name::Name) instead of the bytes; whoever gets it reads the bytes where they lie, and may pass the name on.
//!
//! Nobody counts references. For each *edge*, a lender and a borrower, the borrower keeps a [`Ledger`](ledger::Ledger): memory that it
//! alone writes, in which it says of each chunk whether it holds it, has done with it, or has passed it on and by which edge. The
//! owner reads the ledgers, and follows a chunk from edge to edge until it finds who has it:
//!
//! ```text
//!   owner ----edge 0----> B ----edge 1----> C           B's ledger of edge 0: "passed on by edge 1"
//!                                                       C's ledger of edge 1: "holds", then "done"
//! ```
//!
//! So a chunk comes back by one store of its last holder, whatever became of those between: B may be stopped or killed meanwhile. A
//! borrower that has ended holds nothing. A chunk that was sent and not yet taken is its borrower's, who finds it in the stream even if
//! the lender is dead by then; it comes back when the borrower ends, or says that it takes nothing more by that edge.
//!
//! A chunk's *generation* is its owner's count of how often it came back. A *loan* is one crossing of one edge: the chunk's generation,
//! and the number of crossings since the owner. It tells what a ledger says of this crossing from what it said of an earlier one.
//!
//! What a borrower writes is a claim. A lie can lose what was lent to the liar and what it passed on, or keep it until the liar ends,
//! up to the edge's quota; chunks that went other ways are never touched by it. The owner knows whose each edge is, and believes that a
//! chunk was passed on by an edge only of the one that lends by it.

pub mod borrower;
pub mod ledger;
pub mod name;
pub mod pool;
