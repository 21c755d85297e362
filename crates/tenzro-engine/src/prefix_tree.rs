//! A radix tree over the tokens in the KV buffer: which sequence holds which prefix, and how many
//! cells that takes.
//!
//! A node is a run of cells that the same set of sequences shares; a sequence is a path from the
//! root to its end node. Two sequences that computed the same tokens independently have cells of
//! their own, so siblings may begin with the same token.
//!
//! ```text
//! root ─ "You are a helpful" ─┬─ " pirate. Ahoy"     <- sequence 0
//!                             └─ " poet. Roses"      <- sequences 2 and 5 (5 forked from 2)
//! ```

use std::collections::HashMap;

use crate::llama::{SeqId, Token};

type NodeId = usize;

const ROOT: NodeId = 0;

#[derive(Debug, Default)]
struct Node {
    tokens: Vec<Token>,
    parent: NodeId,
    children: Vec<NodeId>,
    /// Sequences whose last token is the last one of this node.
    ends: Vec<SeqId>,
}

/// See the module header.
#[derive(Debug)]
pub(crate) struct PrefixTree {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    end_of: HashMap<SeqId, NodeId>,
    cells: usize,
}

/// The longest stored prefix of some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    /// A sequence that holds it.
    pub(crate) seq: SeqId,
    /// Its length in tokens; never 0.
    pub(crate) length: usize,
}

impl PrefixTree {
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::default()],
            free: Vec::new(),
            end_of: HashMap::new(),
            cells: 0,
        }
    }

    /// Cells that all sequences take together.
    pub(crate) fn cells(&self) -> usize {
        self.cells
    }

    /// Adds a sequence without tokens.
    pub(crate) fn insert(&mut self, seq: SeqId) {
        let previous = self.end_of.insert(seq, ROOT);
        debug_assert!(previous.is_none(), "sequence {seq} is already in the tree");
        self.nodes[ROOT].ends.push(seq);
    }

    /// Adds the sequence `to` which shares the first `length` tokens of `from`.
    pub(crate) fn fork(&mut self, from: SeqId, length: usize, to: SeqId) {
        let node = self.split_at(from, length);
        let previous = self.end_of.insert(to, node);
        debug_assert!(previous.is_none(), "sequence {to} is already in the tree");
        self.nodes[node].ends.push(to);
    }

    /// Adds tokens that were computed for `seq`.
    pub(crate) fn append(&mut self, seq: SeqId, tokens: &[Token]) {
        if tokens.is_empty() {
            return;
        }
        self.cells += tokens.len();
        let end = self.end_of[&seq];
        let node = &mut self.nodes[end];
        if end != ROOT && node.children.is_empty() && node.ends.len() == 1 {
            node.tokens.extend_from_slice(tokens);
            return;
        }
        node.ends.retain(|&other| other != seq);
        let child = self.allocate(Node {
            tokens: tokens.to_vec(),
            parent: end,
            children: Vec::new(),
            ends: vec![seq],
        });
        self.nodes[end].children.push(child);
        self.end_of.insert(seq, child);
    }

    /// Removes a sequence; cells that only it held are free afterwards.
    pub(crate) fn remove(&mut self, seq: SeqId) {
        let Some(mut node) = self.end_of.remove(&seq) else {
            return;
        };
        self.nodes[node].ends.retain(|&other| other != seq);
        while node != ROOT
            && self.nodes[node].ends.is_empty()
            && self.nodes[node].children.is_empty()
        {
            let parent = self.nodes[node].parent;
            self.nodes[parent].children.retain(|&child| child != node);
            self.cells -= self.nodes[node].tokens.len();
            self.nodes[node] = Node::default();
            self.free.push(node);
            node = parent;
        }
        self.merge_with_only_child(node);
    }

    /// The longest prefix of `tokens` that any sequence holds.
    pub(crate) fn longest_prefix(&self, tokens: &[Token]) -> Option<Match> {
        self.longest_prefix_outside(tokens, ROOT)
    }

    /// Whether other sequences hold all of its tokens, in the same cells or in their own.
    pub(crate) fn is_redundant(&self, seq: SeqId) -> bool {
        let end = self.end_of[&seq];
        let node = &self.nodes[end];
        if node.ends.len() > 1 || !node.children.is_empty() {
            return true;
        }
        let tokens = self.tokens(seq);
        self.longest_prefix_outside(&tokens, end)
            .is_some_and(|found| found.length == tokens.len())
    }

    /// `skipped` is a node to leave out; the root stands for none.
    fn longest_prefix_outside(&self, tokens: &[Token], skipped: NodeId) -> Option<Match> {
        let mut best: Option<(usize, NodeId)> = None;
        // Siblings may begin with the same token, so every branch that matches is followed.
        let mut open: Vec<(NodeId, usize)> = vec![(ROOT, 0)];
        while let Some((id, depth)) = open.pop() {
            for &child in &self.nodes[id].children {
                if child == skipped {
                    continue;
                }
                let run = &self.nodes[child].tokens;
                let common = common_prefix(run, &tokens[depth..]);
                if common == 0 {
                    continue;
                }
                let reached = depth + common;
                if best.is_none_or(|(length, _)| reached > length) {
                    best = Some((reached, child));
                }
                if common == run.len() && reached < tokens.len() {
                    open.push((child, reached));
                }
            }
        }
        best.map(|(length, node)| Match {
            seq: self.any_sequence_below(node),
            length,
        })
    }

    /// Tokens of a sequence.
    pub(crate) fn tokens(&self, seq: SeqId) -> Vec<Token> {
        let mut runs = Vec::new();
        let mut node = self.end_of[&seq];
        while node != ROOT {
            runs.push(&self.nodes[node].tokens);
            node = self.nodes[node].parent;
        }
        runs.into_iter().rev().flatten().copied().collect()
    }

    /// Number of tokens of a sequence.
    pub(crate) fn length(&self, seq: SeqId) -> usize {
        let mut length = 0;
        let mut node = self.end_of[&seq];
        while node != ROOT {
            length += self.nodes[node].tokens.len();
            node = self.nodes[node].parent;
        }
        length
    }

    fn any_sequence_below(&self, mut node: NodeId) -> SeqId {
        loop {
            if let Some(&seq) = self.nodes[node].ends.first() {
                return seq;
            }
            node = *self.nodes[node]
                .children
                .first()
                .expect("a node without children is the end of a sequence");
        }
    }

    /// The node at which the first `length` tokens of `seq` end, made by splitting where needed.
    fn split_at(&mut self, seq: SeqId, length: usize) -> NodeId {
        let mut start = self.length(seq);
        assert!(
            length <= start,
            "sequence {seq} has {start} tokens, not {length}"
        );
        let mut node = self.end_of[&seq];
        // Walk up to the node whose run contains the border.
        while node != ROOT {
            start -= self.nodes[node].tokens.len();
            if start < length {
                break;
            }
            node = self.nodes[node].parent;
        }
        if node == ROOT || start + self.nodes[node].tokens.len() == length {
            return node;
        }
        let tail = self.nodes[node].tokens.split_off(length - start);
        let children = std::mem::take(&mut self.nodes[node].children);
        let ends = std::mem::take(&mut self.nodes[node].ends);
        let below = self.allocate(Node {
            tokens: tail,
            parent: node,
            children,
            ends,
        });
        for index in 0..self.nodes[below].children.len() {
            let child = self.nodes[below].children[index];
            self.nodes[child].parent = below;
        }
        for index in 0..self.nodes[below].ends.len() {
            let end = self.nodes[below].ends[index];
            self.end_of.insert(end, below);
        }
        self.nodes[node].children.push(below);
        node
    }

    /// Joins a node that no sequence ends at with its only child, so that runs stay maximal.
    fn merge_with_only_child(&mut self, node: NodeId) {
        if node == ROOT || !self.nodes[node].ends.is_empty() || self.nodes[node].children.len() != 1
        {
            return;
        }
        let child = self.nodes[node].children[0];
        let below = std::mem::take(&mut self.nodes[child]);
        self.free.push(child);
        for &grandchild in &below.children {
            self.nodes[grandchild].parent = node;
        }
        for &seq in &below.ends {
            self.end_of.insert(seq, node);
        }
        let merged = &mut self.nodes[node];
        merged.tokens.extend(below.tokens);
        merged.children = below.children;
        merged.ends = below.ends;
    }

    fn allocate(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }
}

/// Number of leading tokens that both have.
pub(crate) fn common_prefix(left: &[Token], right: &[Token]) -> usize {
    left.iter().zip(right).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forks_share_cells_and_removal_frees_only_what_nobody_else_holds() {
        let mut tree = PrefixTree::new();
        tree.insert(0);
        tree.append(0, &[1, 2, 3, 4]);
        tree.fork(0, 2, 1);
        tree.append(1, &[9]);
        assert_eq!(tree.cells(), 5);
        assert_eq!(
            tree.longest_prefix(&[1, 2, 9, 9]),
            Some(Match { seq: 1, length: 3 })
        );
        tree.remove(0);
        assert_eq!((tree.cells(), tree.tokens(1)), (3, vec![1, 2, 9]));
        assert_eq!(tree.longest_prefix(&[7]), None);
    }

    #[test]
    fn a_sequence_is_redundant_when_others_hold_all_its_tokens() {
        let mut tree = PrefixTree::new();
        tree.insert(0);
        tree.append(0, &[1, 2]);
        assert!(!tree.is_redundant(0));
        tree.fork(0, 2, 1);
        assert!(tree.is_redundant(0));
        tree.append(1, &[3]);
        assert!(tree.is_redundant(0) && !tree.is_redundant(1));
        tree.insert(2);
        tree.append(2, &[1, 2, 3, 4]);
        assert!(tree.is_redundant(1), "the same tokens in other cells");
        assert!(!tree.is_redundant(2));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert,
        Fork { from: usize, share: usize },
        Append { seq: usize, tokens: Vec<Token> },
        Remove { seq: usize },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(Op::Insert),
            (any::<usize>(), 0..100usize).prop_map(|(from, share)| Op::Fork { from, share }),
            (any::<usize>(), prop::collection::vec(0..3, 1..6))
                .prop_map(|(seq, tokens)| Op::Append { seq, tokens }),
            any::<usize>().prop_map(|seq| Op::Remove { seq }),
        ]
    }

    proptest! {
        /// Against a model in which every cell has an identity and sequences are lists of cells.
        #[test]
        fn agrees_with_sequences_as_lists_of_cells(
            ops in prop::collection::vec(op(), 1..60),
            query in prop::collection::vec(0..3, 1..12),
        ) {
            let mut tree = PrefixTree::new();
            let mut model: Vec<(SeqId, Vec<(usize, Token)>)> = Vec::new();
            let mut next_seq = 0;
            let mut next_cell = 0;
            for op in ops {
                match op {
                    Op::Insert => {
                        tree.insert(next_seq);
                        model.push((next_seq, Vec::new()));
                        next_seq += 1;
                    }
                    Op::Fork { from, share } if !model.is_empty() => {
                        let (seq, cells) = model[from % model.len()].clone();
                        let length = share % (cells.len() + 1);
                        tree.fork(seq, length, next_seq);
                        model.push((next_seq, cells[..length].to_vec()));
                        next_seq += 1;
                    }
                    Op::Append { seq, tokens } if !model.is_empty() => {
                        let index = seq % model.len();
                        tree.append(model[index].0, &tokens);
                        for token in tokens {
                            model[index].1.push((next_cell, token));
                            next_cell += 1;
                        }
                    }
                    Op::Remove { seq } if !model.is_empty() => {
                        let (seq, _) = model.remove(seq % model.len());
                        tree.remove(seq);
                    }
                    _ => {}
                }
                let unique: std::collections::HashSet<usize> =
                    model.iter().flat_map(|(_, cells)| cells.iter().map(|cell| cell.0)).collect();
                prop_assert_eq!(tree.cells(), unique.len());
                for (seq, cells) in &model {
                    let tokens: Vec<Token> = cells.iter().map(|cell| cell.1).collect();
                    prop_assert_eq!(tree.tokens(*seq), tokens);
                }
            }
            let longest = model
                .iter()
                .map(|(_, cells)| {
                    cells.iter().zip(&query).take_while(|(cell, token)| cell.1 == **token).count()
                })
                .max()
                .unwrap_or(0);
            let found = tree.longest_prefix(&query);
            prop_assert_eq!(found.map_or(0, |found| found.length), longest);
            if let Some(found) = found {
                prop_assert_eq!(&tree.tokens(found.seq)[..longest], &query[..longest]);
            }
        }
    }
}
