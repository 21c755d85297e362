// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IReceiveWithAuthorization} from "./IReceiveWithAuthorization.sol";
import {Signatures} from "./Signatures.sol";
import {Vouchers} from "./Vouchers.sol";

/// @title One-way payment channels: a deposit, drawn on with vouchers that the payer signs off the chain.
/// @notice The escrow of the MPP draft draft-evm-session-00: its mandatory core, and of its relayed profile
/// the functions by EIP-3009 and by the payee's authorization. `settleBatch` is ours.
///
///     open ─▶ settle, topUp … ─▶ close            by the payee, whenever it likes
///                             └▶ requestClose ─ grace period ─▶ withdraw   by the payer
///
/// A voucher says how much the payee may have had in all since the channel was opened, so a newer one
/// replaces an older one, and none pays twice. A deposit goes nowhere but to the payee by the payer's
/// signature, or back to the payer.
/// @dev Channels are never deleted: a closed one keeps its id, so that no old voucher draws on new money.
///
/// Every function that moves tokens changes the state first and is guarded against reentrancy. One token is
/// accepted, chosen at deployment; what arrives is measured.
contract PaymentChannels is Vouchers, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// A channel, as the draft has it. All zero where there is none.
    struct Channel {
        address payer;
        address payee;
        address token;
        /// Who signs vouchers; zero means the payer does.
        address authorizedSigner;
        /// Wei put in.
        uint128 deposit;
        /// Wei paid to the payee.
        uint128 settled;
        /// Unix seconds; 0 while the payer did not ask for closing.
        uint64 closeRequestedAt;
        /// Closed for ever.
        bool finalized;
    }

    /// One row of `settleBatch`.
    struct Settlement {
        bytes32 channelId;
        uint128 cumulativeAmount;
        bytes signature;
    }

    /// What is kept of a channel: without the token, which is the same for all.
    struct Record {
        address payer;
        uint64 closeRequestedAt;
        bool finalized;
        address payee;
        address authorizedSigner;
        uint128 deposit;
        uint128 settled;
    }

    /// @notice Seconds that `CLOSE_GRACE_PERIOD` has at least: enough for a provider to start again and
    /// settle. The draft asks for 10 minutes, its reference value is this.
    uint64 public constant MINIMUM_CLOSE_GRACE_PERIOD = 15 minutes;

    /// @notice Seconds between the payer's `requestClose` and its `withdraw`.
    uint64 public immutable CLOSE_GRACE_PERIOD;
    /// @notice The only token that channels hold.
    IERC20 public immutable token;

    mapping(bytes32 channelId => Record) private _channels;

    /// @notice A channel with `deposit` wei.
    event ChannelOpened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address token,
        address authorizedSigner,
        bytes32 salt,
        uint128 deposit
    );
    /// @notice `from` put in `additionalDeposit` wei; now `deposit` in all.
    event ChannelToppedUp(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address from,
        uint128 additionalDeposit,
        uint128 deposit
    );
    /// @notice The payee got `amount` wei; now `settled` in all.
    event ChannelSettled(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint128 amount,
        uint128 settled
    );
    /// @notice The payer can withdraw from `withdrawableAt` (Unix seconds) on.
    event CloseRequested(
        bytes32 indexed channelId, address indexed payer, address indexed payee, uint256 withdrawableAt
    );
    /// @notice The payer topped up, and so goes on.
    event CloseRequestCancelled(bytes32 indexed channelId, address indexed payer, address indexed payee);
    /// @notice Closed for ever: the payee had `settled` wei in all, the payer got `refunded` back.
    event ChannelClosed(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint128 settled,
        uint128 refunded
    );
    /// @notice A row of a batch was left out; `reason` is the selector of the error that `settle` would give.
    event SettlementSkipped(
        bytes32 indexed channelId, address indexed caller, uint128 cumulativeAmount, bytes4 reason
    );

    /// @notice There is, or was, a channel of that id.
    error ChannelAlreadyExists();
    /// @notice There was never such a channel.
    error ChannelNotFound();
    /// @notice The channel is closed.
    error ChannelFinalized();
    /// @notice Only the payee may do that.
    error NotPayee();
    /// @notice Only the payer may do that.
    error NotPayer();
    /// @notice The payee had that much already.
    error AmountNotIncreasing();
    /// @notice The channel does not hold that much.
    error AmountExceedsDeposit();
    /// @notice The EIP-3009 nonce is not the one made of the channel's parameters.
    error NonceMismatch();
    /// @notice Closing was not requested, or the grace period is not over.
    error CloseNotReady();
    /// @notice Nothing was put in.
    error ZeroDeposit();
    /// @notice Deposits would pass 2^128 - 1 wei.
    error DepositOverflow();
    /// @notice Channels hold `accepted` only.
    error TokenNotAccepted(address given, address accepted);
    /// @notice The token did not deliver what was asked for.
    error InexactTransfer(uint256 asked, uint256 received);
    /// @notice The grace period of a deployment has at least `minimum` seconds.
    error GracePeriodTooShort(uint64 given, uint64 minimum);

    /// @param token_ The only token that channels will hold: one that moves exactly what it is asked to.
    /// @param closeGracePeriod Seconds between `requestClose` and `withdraw`.
    constructor(IERC20 token_, uint64 closeGracePeriod) {
        require(
            closeGracePeriod >= MINIMUM_CLOSE_GRACE_PERIOD,
            GracePeriodTooShort(closeGracePeriod, MINIMUM_CLOSE_GRACE_PERIOD)
        );
        token = token_;
        CLOSE_GRACE_PERIOD = closeGracePeriod;
    }

    // --- Opening and topping up -------------------------------------------------------------------

    /// @notice Opens a channel from the caller. The deposit must be allowed to this contract before.
    /// @param payee Who can draw on it.
    /// @param token_ The accepted token.
    /// @param deposit Wei.
    /// @param salt Anything that makes the id a new one.
    /// @param authorizedSigner Who signs vouchers; zero means the caller does.
    /// @return channelId See `computeChannelId`.
    function open(
        address payee,
        address token_,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner
    ) external nonReentrant returns (bytes32 channelId) {
        channelId = _open(msg.sender, payee, token_, deposit, salt, authorizedSigner);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), deposit);
        _requireReceived(before, deposit);
    }

    /// @notice Opens a channel from `from` with its signed EIP-3009 authorization (receiveWithAuthorization);
    /// anybody may submit it.
    /// @param payee Who can draw on it.
    /// @param token_ The accepted token.
    /// @param deposit Wei.
    /// @param salt Anything that makes the id a new one.
    /// @param authorizedSigner Who signs vouchers; zero means `from` does.
    /// @param from Who pays.
    /// @param validAfter Unix seconds after which the authorization holds.
    /// @param validBefore Unix seconds before which it holds.
    /// @param nonce `keccak256(abi.encode(from, payee, token_, salt, authorizedSigner))`: binds the channel's
    /// parameters, which EIP-3009 does not sign, to the signature.
    /// @param signature Of the authorization.
    /// @return channelId See `computeChannelId`.
    function openWithAuthorization(
        address payee,
        address token_,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner,
        address from,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external nonReentrant returns (bytes32 channelId) {
        channelId = _open(from, payee, token_, deposit, salt, authorizedSigner);
        bytes32 bound = keccak256(abi.encode(from, payee, token_, salt, authorizedSigner));
        require(nonce == bound, NonceMismatch());
        _receive(from, deposit, validAfter, validBefore, nonce, signature);
    }

    /// @notice Puts more in. Payer only, who must have allowed it to this contract; takes a request for
    /// closing back.
    /// @param channelId The channel.
    /// @param additionalDeposit Wei.
    function topUp(bytes32 channelId, uint128 additionalDeposit) external nonReentrant {
        Record storage channel = _live(channelId);
        require(msg.sender == channel.payer, NotPayer());
        _topUp(channelId, channel, msg.sender, additionalDeposit);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), additionalDeposit);
        _requireReceived(before, additionalDeposit);
    }

    /// @notice Puts more in with the signed EIP-3009 authorization of `from`; anybody may submit it, and
    /// anybody may give. A refund goes to the payer all the same.
    /// @dev Takes a request for closing back only where the payer itself gives: others could keep the payer
    /// from leaving, a wei at a time.
    /// @param channelId The channel.
    /// @param additionalDeposit Wei.
    /// @param from Who pays.
    /// @param topUpSalt Anything that makes the nonce a new one.
    /// @param validAfter Unix seconds after which the authorization holds.
    /// @param validBefore Unix seconds before which it holds.
    /// @param nonce `keccak256(abi.encode(channelId, additionalDeposit, from, topUpSalt))`.
    /// @param signature Of the authorization.
    function topUpWithAuthorization(
        bytes32 channelId,
        uint128 additionalDeposit,
        address from,
        bytes32 topUpSalt,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external nonReentrant {
        _topUp(channelId, _live(channelId), from, additionalDeposit);
        bytes32 bound = keccak256(abi.encode(channelId, additionalDeposit, from, topUpSalt));
        require(nonce == bound, NonceMismatch());
        _receive(from, additionalDeposit, validAfter, validBefore, nonce, signature);
    }

    // --- Settling ---------------------------------------------------------------------------------

    /// @notice Pays the payee up to the voucher's amount. Payee only; works until the channel is closed,
    /// whether or not closing was requested.
    /// @param channelId The channel.
    /// @param cumulativeAmount Wei since the channel was opened; more than was settled before.
    /// @param signature Of the voucher.
    function settle(
        bytes32 channelId,
        uint128 cumulativeAmount,
        bytes calldata signature
    ) external nonReentrant {
        Record storage channel = _channels[channelId];
        _revertWith(_refusal(channel, msg.sender, cumulativeAmount));
        _requireVoucher(_signer(channel), channelId, cumulativeAmount, signature);
        uint128 amount = _settle(channelId, channel, cumulativeAmount);
        token.safeTransfer(msg.sender, amount);
    }

    /// @notice Settles many channels of the caller with one transfer. A row that `settle` would refuse is
    /// left out and reported with `SettlementSkipped`.
    /// @dev Only vouchers signed by a key: a contract that is asked about a signature could use up the gas
    /// of all rows. Vouchers of contract wallets are skipped as `InvalidSignature`, and `settle` takes them.
    /// @param rows Channels with their vouchers; of several for a channel each has to raise it.
    /// @return total Wei that the caller got.
    function settleBatch(Settlement[] calldata rows) external nonReentrant returns (uint256 total) {
        for (uint256 i = 0; i < rows.length; ++i) {
            Settlement calldata row = rows[i];
            Record storage channel = _channels[row.channelId];
            bytes4 refusal = _refusal(channel, msg.sender, row.cumulativeAmount);
            if (refusal == 0) {
                bytes32 digest = voucherDigest(row.channelId, row.cumulativeAmount);
                if (!Signatures.isByKey(_signer(channel), digest, row.signature)) {
                    refusal = InvalidSignature.selector;
                }
            }
            if (refusal == 0) {
                total += _settle(row.channelId, channel, row.cumulativeAmount);
            } else {
                emit SettlementSkipped(row.channelId, msg.sender, row.cumulativeAmount, refusal);
            }
        }
        if (total != 0) token.safeTransfer(msg.sender, total);
    }

    /// @notice As `settle`, submitted by anybody with the payee's signature. The payee is paid.
    /// @param channelId The channel.
    /// @param cumulativeAmount Wei since the channel was opened; more than was settled before.
    /// @param nonce Anything that the payee did not use for this channel yet.
    /// @param deadline Unix seconds until when the payee's signature holds.
    /// @param payeeSignature Of `SettleAuthorization`.
    /// @param voucherSignature Of the voucher.
    function settleWithAuthorization(
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature,
        bytes calldata voucherSignature
    ) external nonReentrant {
        Record storage channel = _live(channelId);
        address payee = channel.payee;
        _useAuthorization(
            SETTLE_TYPEHASH, payee, channelId, cumulativeAmount, nonce, deadline, payeeSignature
        );
        _revertWith(_refusal(channel, payee, cumulativeAmount));
        _requireVoucher(_signer(channel), channelId, cumulativeAmount, voucherSignature);
        uint128 amount = _settle(channelId, channel, cumulativeAmount);
        token.safeTransfer(payee, amount);
    }

    // --- Closing ----------------------------------------------------------------------------------

    /// @notice Pays the payee up to the voucher's amount, gives the payer the rest back and closes the
    /// channel for ever. Payee only.
    /// @param channelId The channel.
    /// @param cumulativeAmount Wei since the channel was opened. Not more than was settled before means that
    /// the payee wants no more: no voucher is needed.
    /// @param signature Of the voucher; may be empty where none is needed.
    function close(
        bytes32 channelId,
        uint128 cumulativeAmount,
        bytes calldata signature
    ) external nonReentrant {
        Record storage channel = _live(channelId);
        require(msg.sender == channel.payee, NotPayee());
        _close(channelId, channel, cumulativeAmount, signature);
    }

    /// @notice As `close`, submitted by anybody with the payee's signature. The payee is paid.
    /// @param channelId The channel.
    /// @param cumulativeAmount Wei since the channel was opened; see `close`.
    /// @param nonce Anything that the payee did not use for this channel yet.
    /// @param deadline Unix seconds until when the payee's signature holds.
    /// @param payeeSignature Of `CloseAuthorization`.
    /// @param voucherSignature Of the voucher; may be empty where none is needed.
    function closeWithAuthorization(
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature,
        bytes calldata voucherSignature
    ) external nonReentrant {
        Record storage channel = _live(channelId);
        _useAuthorization(
            CLOSE_TYPEHASH, channel.payee, channelId, cumulativeAmount, nonce, deadline, payeeSignature
        );
        _close(channelId, channel, cumulativeAmount, voucherSignature);
    }

    /// @notice Begins the grace period, in which the payee can still settle. Payer only; asking again
    /// changes nothing.
    /// @param channelId The channel.
    function requestClose(bytes32 channelId) external {
        Record storage channel = _live(channelId);
        require(msg.sender == channel.payer, NotPayer());
        if (channel.closeRequestedAt != 0) return;
        channel.closeRequestedAt = uint64(block.timestamp);
        emit CloseRequested(channelId, msg.sender, channel.payee, block.timestamp + CLOSE_GRACE_PERIOD);
    }

    /// @notice Gives the payer back what was not settled, after the grace period, and closes the channel for
    /// ever. Payer only.
    /// @param channelId The channel.
    function withdraw(bytes32 channelId) external nonReentrant {
        Record storage channel = _live(channelId);
        require(msg.sender == channel.payer, NotPayer());
        uint256 requestedAt = channel.closeRequestedAt;
        require(requestedAt != 0 && block.timestamp >= requestedAt + CLOSE_GRACE_PERIOD, CloseNotReady());
        _finalize(channelId, channel);
    }

    // --- Views ------------------------------------------------------------------------------------

    /// @notice A channel; all zero where there was never one.
    function getChannel(bytes32 channelId) external view returns (Channel memory) {
        Record storage channel = _channels[channelId];
        Channel memory none;
        if (channel.payer == address(0)) return none;
        return Channel({
            payer: channel.payer,
            payee: channel.payee,
            token: address(token),
            authorizedSigner: channel.authorizedSigner,
            deposit: channel.deposit,
            settled: channel.settled,
            closeRequestedAt: channel.closeRequestedAt,
            finalized: channel.finalized
        });
    }

    /// @notice The id of the channel with these parameters at this contract on this chain.
    function computeChannelId(
        address payer,
        address payee,
        address token_,
        bytes32 salt,
        address authorizedSigner
    ) public view returns (bytes32) {
        return keccak256(
            abi.encode(payer, payee, token_, salt, authorizedSigner, address(this), block.chainid)
        );
    }

    // --- Inside -----------------------------------------------------------------------------------

    function _open(
        address payer,
        address payee,
        address token_,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner
    ) private returns (bytes32 channelId) {
        require(token_ == address(token), TokenNotAccepted(token_, address(token)));
        require(deposit != 0, ZeroDeposit());
        channelId = computeChannelId(payer, payee, token_, salt, authorizedSigner);
        Record storage channel = _channels[channelId];
        require(channel.payer == address(0), ChannelAlreadyExists());
        channel.payer = payer;
        channel.payee = payee;
        channel.authorizedSigner = authorizedSigner;
        channel.deposit = deposit;
        emit ChannelOpened(channelId, payer, payee, token_, authorizedSigner, salt, deposit);
    }

    function _topUp(
        bytes32 channelId,
        Record storage channel,
        address from,
        uint128 additionalDeposit
    ) private {
        require(additionalDeposit != 0, ZeroDeposit());
        require(additionalDeposit <= type(uint128).max - channel.deposit, DepositOverflow());
        uint128 deposit = channel.deposit + additionalDeposit;
        channel.deposit = deposit;
        (address payer, address payee) = (channel.payer, channel.payee);
        emit ChannelToppedUp(channelId, payer, payee, from, additionalDeposit, deposit);
        if (from == payer && channel.closeRequestedAt != 0) {
            channel.closeRequestedAt = 0;
            emit CloseRequestCancelled(channelId, payer, payee);
        }
    }

    function _receive(
        address from,
        uint128 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) private {
        uint256 before = token.balanceOf(address(this));
        IReceiveWithAuthorization(address(token))
            .receiveWithAuthorization(from, address(this), amount, validAfter, validBefore, nonce, signature);
        _requireReceived(before, amount);
    }

    function _requireReceived(uint256 before, uint128 asked) private view {
        uint256 received = token.balanceOf(address(this)) - before;
        require(received == asked, InexactTransfer(asked, received));
    }

    /// @dev The channel, which exists and is not closed.
    function _live(bytes32 channelId) private view returns (Record storage channel) {
        channel = _channels[channelId];
        require(channel.payer != address(0), ChannelNotFound());
        require(!channel.finalized, ChannelFinalized());
    }

    function _signer(Record storage channel) private view returns (address) {
        address authorized = channel.authorizedSigner;
        return authorized == address(0) ? channel.payer : authorized;
    }

    /// @dev Why `payee` cannot settle that amount, whatever the voucher: an error's selector, or 0. One rule
    /// for a single settlement, which reverts, and for a row of a batch, which does not.
    function _refusal(
        Record storage channel,
        address payee,
        uint128 cumulativeAmount
    ) private view returns (bytes4) {
        if (channel.payer == address(0)) return ChannelNotFound.selector;
        if (channel.finalized) return ChannelFinalized.selector;
        if (channel.payee != payee) return NotPayee.selector;
        if (cumulativeAmount <= channel.settled) return AmountNotIncreasing.selector;
        if (cumulativeAmount > channel.deposit) return AmountExceedsDeposit.selector;
        return 0;
    }

    /// @dev Reverts with an error without arguments, unless it is none.
    function _revertWith(bytes4 selector) private pure {
        if (selector == 0) return;
        assembly ("memory-safe") {
            mstore(0, selector)
            revert(0, 4)
        }
    }

    /// @dev Counts as paid what the caller then has to transfer.
    function _settle(
        bytes32 channelId,
        Record storage channel,
        uint128 cumulativeAmount
    ) private returns (uint128 amount) {
        amount = cumulativeAmount - channel.settled;
        channel.settled = cumulativeAmount;
        emit ChannelSettled(channelId, channel.payer, channel.payee, amount, cumulativeAmount);
    }

    function _close(
        bytes32 channelId,
        Record storage channel,
        uint128 cumulativeAmount,
        bytes calldata signature
    ) private {
        uint128 amount = 0;
        if (cumulativeAmount > channel.settled) {
            require(cumulativeAmount <= channel.deposit, AmountExceedsDeposit());
            _requireVoucher(_signer(channel), channelId, cumulativeAmount, signature);
            amount = _settle(channelId, channel, cumulativeAmount);
        }
        address payee = channel.payee;
        _finalize(channelId, channel);
        if (amount != 0) token.safeTransfer(payee, amount);
    }

    /// @dev Closes for ever and gives the payer the rest.
    function _finalize(bytes32 channelId, Record storage channel) private {
        channel.finalized = true;
        uint128 refund = channel.deposit - channel.settled;
        address payer = channel.payer;
        emit ChannelClosed(channelId, payer, channel.payee, channel.settled, refund);
        if (refund != 0) token.safeTransfer(payer, refund);
    }
}
