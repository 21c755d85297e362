// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {TNZO} from "../src/TNZO.sol";
import {Base} from "./support/Base.sol";
import {Rejecting, Wallet} from "./support/Wallets.sol";

contract TNZOTest is Base {
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);

    bytes32 private constant NONCE = keccak256("nonce");

    function setUp() public {
        deployAll();
        token.transfer(alice, 1000);
    }

    function test_metadata() public view {
        vm.assertEq(token.name(), "Tenzro");
        vm.assertEq(token.symbol(), "TNZO");
        vm.assertEq(token.decimals(), 18);
        vm.assertEq(token.totalSupply(), SUPPLY);
        vm.assertEq(token.balanceOf(address(this)), SUPPLY - 1000);
        vm.assertEq(token.DOMAIN_SEPARATOR(), tokenDomain());
        (bytes1 fields, string memory name, string memory version, uint256 chainId, address contract_,,) =
            token.eip712Domain();
        vm.assertEq(bytes32(fields), bytes32(hex"0f"));
        vm.assertEq(name, "Tenzro");
        vm.assertEq(version, "1");
        vm.assertEq(chainId, block.chainid);
        vm.assertEq(contract_, address(token));
    }

    function test_treasury_mustNotBeZero() public {
        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, address(0)));
        new TNZO(address(0), 1);
    }

    function test_transfer_moreThanBalance_reverts() public {
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientBalance.selector, alice, 1000, 1001)
        );
        vm.prank(alice);
        token.transfer(bob, 1001);
    }

    // --- ERC-2612 ---------------------------------------------------------------------------------

    function test_permit() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(ALICE_KEY, permitDigest(alice, bob, 70, 0, START));
        token.permit(alice, bob, 70, START, v, r, s);
        vm.assertEq(token.allowance(alice, bob), 70);
        vm.assertEq(token.nonces(alice), 1);
        vm.prank(bob);
        token.transferFrom(alice, carol, 70);
        vm.assertEq(token.balanceOf(carol), 70);
    }

    function test_permit_twice_reverts() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(ALICE_KEY, permitDigest(alice, bob, 70, 0, START));
        token.permit(alice, bob, 70, START, v, r, s);
        vm.expectRevert();
        token.permit(alice, bob, 70, START, v, r, s);
    }

    function test_permit_late_reverts() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(ALICE_KEY, permitDigest(alice, bob, 70, 0, START));
        vm.warp(START + 1);
        vm.expectRevert(abi.encodeWithSelector(ERC20Permit.ERC2612ExpiredSignature.selector, START));
        token.permit(alice, bob, 70, START, v, r, s);
    }

    function test_permit_bySomebodyElse_reverts() public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(BOB_KEY, permitDigest(alice, bob, 70, 0, START));
        vm.expectRevert(abi.encodeWithSelector(ERC20Permit.ERC2612InvalidSigner.selector, bob, alice));
        token.permit(alice, bob, 70, START, v, r, s);
    }

    // --- ERC-3009, both overloads of each function ------------------------------------------------

    /// Which function, with which signature.
    enum Form {
        TransferSplit,
        TransferPacked,
        ReceiveSplit,
        ReceivePacked
    }

    function use(
        Form form,
        address from,
        address to,
        uint256 after_,
        uint256 before_,
        bytes memory signature
    ) private {
        (uint8 v, bytes32 r, bytes32 s) = unpack(signature);
        if (form == Form.TransferSplit) {
            token.transferWithAuthorization(from, to, 100, after_, before_, NONCE, v, r, s);
        } else if (form == Form.TransferPacked) {
            token.transferWithAuthorization(from, to, 100, after_, before_, NONCE, signature);
        } else if (form == Form.ReceiveSplit) {
            token.receiveWithAuthorization(from, to, 100, after_, before_, NONCE, v, r, s);
        } else {
            token.receiveWithAuthorization(from, to, 100, after_, before_, NONCE, signature);
        }
    }

    function digest(
        Form form,
        address from,
        address to,
        uint256 after_,
        uint256 before_
    ) private view returns (bytes32) {
        bool isTransfer = form == Form.TransferSplit || form == Form.TransferPacked;
        return transferDigest(isTransfer ? "Transfer" : "Receive", from, to, 100, after_, before_, NONCE);
    }

    function test_authorization_allForms() public {
        for (uint8 i = 0; i < 4; ++i) {
            uint256 state = vm.snapshotState();
            bytes memory signature = pack(ALICE_KEY, digest(Form(i), alice, bob, START - 1, START + 1));
            vm.expectEmit(address(token));
            emit AuthorizationUsed(alice, NONCE);
            vm.prank(bob);
            use(Form(i), alice, bob, START - 1, START + 1, signature);
            vm.assertEq(token.balanceOf(bob), 100);
            vm.assertEq(token.balanceOf(alice), 900);
            vm.assertTrue(token.authorizationState(alice, NONCE));

            vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, alice, NONCE));
            vm.prank(bob);
            use(Form(i), alice, bob, START - 1, START + 1, signature);
            vm.revertToState(state);
        }
    }

    function test_authorization_outsideItsTime_reverts() public {
        for (uint8 i = 0; i < 4; ++i) {
            uint256[2][2] memory times = [[START, START + 9], [uint256(0), START]];
            for (uint256 k = 0; k < 2; ++k) {
                (uint256 after_, uint256 before_) = (times[k][0], times[k][1]);
                bytes memory signature = pack(ALICE_KEY, digest(Form(i), alice, bob, after_, before_));
                vm.expectRevert(
                    abi.encodeWithSelector(ERC3009.ERC3009InvalidAuthorizationTime.selector, after_, before_)
                );
                vm.prank(bob);
                use(Form(i), alice, bob, after_, before_, signature);
            }
        }
    }

    function test_authorization_bySomebodyElse_reverts() public {
        for (uint8 i = 0; i < 4; ++i) {
            bytes memory signature = pack(BOB_KEY, digest(Form(i), alice, bob, 0, FOR_EVER));
            vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
            vm.prank(bob);
            use(Form(i), alice, bob, 0, FOR_EVER, signature);
        }
    }

    function test_authorization_changedValue_reverts() public {
        bytes32 signed = transferDigest("Transfer", alice, bob, 99, 0, FOR_EVER, NONCE);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        use(Form.TransferPacked, alice, bob, 0, FOR_EVER, pack(ALICE_KEY, signed));
    }

    function test_receive_onlyByTheReceiver() public {
        for (uint8 i = 2; i < 4; ++i) {
            bytes memory signature = pack(ALICE_KEY, digest(Form(i), alice, bob, 0, FOR_EVER));
            vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, bob));
            vm.prank(carol);
            use(Form(i), alice, bob, 0, FOR_EVER, signature);
        }
    }

    /// One kind's signature is not the other's: what only a contract should receive cannot be sent past it.
    function test_receiveSignature_isNoTransferSignature() public {
        bytes memory signature = pack(ALICE_KEY, digest(Form.ReceivePacked, alice, bob, 0, FOR_EVER));
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        use(Form.TransferPacked, alice, bob, 0, FOR_EVER, signature);
    }

    function test_cancel_bothForms() public {
        bytes32 typeHash = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");
        bytes memory signature = pack(ALICE_KEY, typed(tokenDomain(), abi.encode(typeHash, alice, NONCE)));
        bytes memory transfer = pack(ALICE_KEY, digest(Form.TransferPacked, alice, bob, 0, FOR_EVER));
        (uint8 v, bytes32 r, bytes32 s) = unpack(signature);
        for (uint8 i = 0; i < 2; ++i) {
            uint256 state = vm.snapshotState();
            vm.expectEmit(address(token));
            emit AuthorizationCanceled(alice, NONCE);
            if (i == 0) token.cancelAuthorization(alice, NONCE, signature);
            else token.cancelAuthorization(alice, NONCE, v, r, s);
            vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, alice, NONCE));
            use(Form.TransferPacked, alice, bob, 0, FOR_EVER, transfer);
            vm.revertToState(state);
        }
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        token.cancelAuthorization(bob, NONCE, signature);
    }

    function test_wallet_signsPackedOnly() public {
        address wallet = address(new Wallet(alice));
        token.transfer(wallet, 100);
        bytes memory signature = pack(ALICE_KEY, digest(Form.TransferPacked, wallet, bob, 0, FOR_EVER));
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        use(Form.TransferSplit, wallet, bob, 0, FOR_EVER, signature);
        use(Form.TransferPacked, wallet, bob, 0, FOR_EVER, signature);
        vm.assertEq(token.balanceOf(bob), 100);
    }

    /// With code set by EIP-7702 a key's signature counts as before.
    function test_delegatedAccount_signsWithItsKey() public {
        vm.etch(alice, type(Rejecting).runtimeCode);
        bytes memory signature = pack(ALICE_KEY, digest(Form.TransferPacked, alice, bob, 0, FOR_EVER));
        use(Form.TransferPacked, alice, bob, 0, FOR_EVER, signature);
        vm.assertEq(token.balanceOf(bob), 100);
    }

    function test_attack03_authorizationOfAnotherChain() public {
        bytes memory signature = pack(ALICE_KEY, digest(Form.TransferPacked, alice, bob, 0, FOR_EVER));
        vm.chainId(block.chainid + 1);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        use(Form.TransferPacked, alice, bob, 0, FOR_EVER, signature);
    }

    function test_attack03_authorizationOfAnotherDeployment() public {
        bytes memory signature = pack(ALICE_KEY, digest(Form.TransferPacked, alice, bob, 0, FOR_EVER));
        deployAll();
        token.transfer(alice, 1000);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        use(Form.TransferPacked, alice, bob, 0, FOR_EVER, signature);
    }

    function test_attack06_flippedS_authorization() public {
        for (uint8 i = 0; i < 4; ++i) {
            bytes memory flipped = flip(pack(ALICE_KEY, digest(Form(i), alice, bob, 0, FOR_EVER)));
            vm.expectRevert();
            vm.prank(bob);
            use(Form(i), alice, bob, 0, FOR_EVER, flipped);
        }
    }

    function test_attack06_flippedS_permit() public {
        bytes memory flipped = flip(pack(ALICE_KEY, permitDigest(alice, bob, 70, 0, START)));
        (uint8 v, bytes32 r, bytes32 s) = unpack(flipped);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, s));
        token.permit(alice, bob, 70, START, v, r, s);
    }

    function test_attack06_zeroAddressSigner() public {
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        use(Form.TransferPacked, address(0), bob, 0, FOR_EVER, new bytes(65));
        vm.expectRevert(ECDSA.ECDSAInvalidSignature.selector);
        use(Form.TransferSplit, address(0), bob, 0, FOR_EVER, new bytes(65));
    }

    function testFuzz_attack06_garbage(bytes calldata garbage) public {
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        use(Form.TransferPacked, alice, bob, 0, FOR_EVER, garbage);
    }

    function testFuzz_authorization_movesExactly(uint256 value, bytes32 nonce) public {
        value = bound(value, 0, SUPPLY - 1000);
        token.transfer(alice, value);
        bytes32 signed = transferDigest("Transfer", alice, bob, value, 0, FOR_EVER, nonce);
        token.transferWithAuthorization(alice, bob, value, 0, FOR_EVER, nonce, pack(ALICE_KEY, signed));
        vm.assertEq(token.balanceOf(bob), value);
        vm.assertEq(token.balanceOf(alice), 1000);
        vm.assertEq(token.totalSupply(), SUPPLY);
    }
}
